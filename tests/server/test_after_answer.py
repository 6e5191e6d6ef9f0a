"""What is measured after the answer: score, judge, gold, log-ratio; and what is found again."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from running_gateway import MakeConfig, Run, Running, eventually, row_id, scorer, settled
from stored import candidate, completion

from bond_core.errors import StoreUnavailableError
from bond_core.store import CompletionRecord
from bond_core.types import Arm
from bond_server.metrics import Metrics
from bond_server.services.after_answer import AfterAnswer


async def row(running: Running, body: dict[str, str]) -> CompletionRecord:
    record = await running.gateway.store.completions.get(row_id(body))
    assert record is not None
    return record


async def test_single_samples_are_scored_judged_and_graded(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    config = make_config(
        judge=scorer(rewards_file, "negative_length"), gold=scorer(rewards_file, "tied")
    )
    async with run(config) as running:
        single = (await running.post("/v1/distilled")).json()
        best = (await running.post("/v1/best-of-n")).json()
        await settled(running)
        distilled, bon = await row(running, single), await row(running, best)
        assert running.metric("bond_reward_count", arm="distilled") == 1
        assert running.metric("bond_reward_count", arm="bon") == 1
    for record, body in ((distilled, single), (bon, best)):
        size = float(len(body["choices"][0]["message"]["content"]))
        assert (record.score, record.judge_score, record.gold_score) == (size, -size, 1.5)


async def test_log_ratio_is_zero_for_the_reference_and_none_where_an_answer_was_selected(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        bodies = [
            (await running.post("/v1/distilled")).json(),
            (await running.post("/v1/best-of-n")).json(),
            (await running.post("/v1/distilled", best_of=3)).json(),
            (await running.post("/v1/distilled", temperature=0.7)).json(),
        ]
        await settled(running)
        ratios = [(await row(running, body)).log_ratio for body in bodies]
    assert ratios == [0.0, None, None, None]


async def test_one_bad_answer_does_not_cost_the_others_their_score(
    run: Run, make_config: MakeConfig, tmp_path: Path
) -> None:
    picky = tmp_path / "picky.py"
    picky.write_text(
        "def picky(prompts, completions, **kwargs):\n"
        "    if any('unscorable' in turns[0]['content'] for turns in prompts):\n"
        "        raise ValueError('no')\n"
        "    return [7.0 for _ in completions]\n"
    )
    async with run(make_config(scorer=scorer(picky, "picky"))) as running:
        good = (await running.post("/v1/distilled")).json()
        bad = (
            await running.post(
                "/v1/distilled", messages=[{"role": "user", "content": "unscorable"}]
            )
        ).json()
        await settled(running)
        rows = [await row(running, good), await row(running, bad)]
        # both at once, so that they share a batch
        blank = [replace(r, score=None) for r in rows]
        await running.gateway.after_answer.measure(blank)
        assert running.metric("bond_follow_up_failures_total", step="score") == 2
    assert [r.score for r in rows] == [7.0, None]


async def test_what_a_restart_missed_is_found_again(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "raises"))) as running:
        body = (await running.post("/v1/distilled")).json()
        await settled(running)
        assert (await row(running, body)).score is None
    async with run(make_config()) as running:

        async def scored() -> bool:
            return (await row(running, body)).score is not None

        await eventually(scored)
        found = await row(running, body)
    assert found.score == float(len(body["choices"][0]["message"]["content"]))
    assert found.log_ratio == 0.0


async def test_a_store_that_is_away_meanwhile_is_one_line_and_no_defect(
    run: Run,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def away(_: object) -> None:
        raise StoreUnavailableError("the store is away")

    async with run(make_config()) as running:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(running.gateway.store.completions, "annotate", away)
            body = (await running.post("/v1/distilled")).json()
            await settled(running)
        assert (await row(running, body)).score is None
        assert await running.gateway.after_answer.sweep() == 1
        assert (await row(running, body)).score is not None
    [line] = [r for r in caplog.records if r.name == "bond_server.services.after_answer"]
    assert (line.levelname, line.exc_info) == ("WARNING", None)
    assert line.getMessage() == "1 answers wait for the next sweep: the store is away"


async def test_a_sweep_tries_each_row_once_and_passes_those_that_need_nothing(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "raises"))) as running:
        for _ in range(3):
            await running.post("/v1/distilled")
        await settled(running)
        own = measurer(running)  # the gateway's own sweeps whenever it likes
        assert await own.sweep() == 3
        assert await own.sweep() == 0
        await running.post("/v1/distilled")
        await settled(running)
        assert await own.sweep() == 1


async def test_a_sweep_leaves_queued_rows_to_the_worker(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "raises"))) as running:
        records = [await row(running, (await running.post("/v1/distilled")).json()) for _ in "ab"]
        await settled(running)
        own = measurer(running)
        own.submit(records[0])
        assert await own.sweep() == 1
        worker = asyncio.create_task(own.run())
        await own.drain(5.0)
        worker.cancel()
        assert await own.sweep() == 1
        assert await own.sweep() == 0


def measurer(running: Running) -> AfterAnswer:
    """A second one over the same store, with a queue and a memory of its own."""
    gateway = running.gateway
    return AfterAnswer(
        gateway.store.completions,
        gateway.engine,
        gateway.policies,
        gateway.judges,
        Metrics(),
        temperature=1.0,
    )


async def test_the_first_that_ended_in_time_is_no_plain_sample(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        unscored = (candidate(0, score=None),)
        plain = completion("plain", arm=Arm.DISTILLED, candidates=unscored)
        cut = replace(plain, id="cut", best_of=4, degraded="deadline")
        store = running.gateway.store.completions
        await store.record_many([cut, plain])
        await measurer(running).measure([cut, plain])
        ratios = [row.log_ratio for row in await store.get_many(["cut", "plain"])]
    assert ratios == [None, 0.0]
