"""What answers cost: exact, in usage, header and metric, and nowhere without prices."""

from typing import Any

import pytest
from held_engine import Held
from running_gateway import MODEL, MakeConfig, Run, Running, row_id, scorer
from served_gateway import HI, Serve, told
from stored import all_rows

from bond_core.config import PricesConfig
from bond_core.engines.fake_language import END_TOKEN
from bond_core.store.records import CompletionRecord
from bond_core.types import Completion, Generation

PRICES = {"prompt_tokens": 0.5, "completion_tokens": 2.0, "reward_tokens": 0.25}
HEADER = "x-bond-cost-usd"


def expected(row: CompletionRecord) -> float:
    """By hand: every candidate is generated, and those with a score were read with the prompt."""
    prompt = len(row.prompt_token_ids)
    sizes = [len(c.completion.token_ids) for c in row.candidates]
    texts = {
        c.completion.text: s
        for s, c in zip(sizes, row.candidates, strict=True)
        if c.score is not None
    }
    read = [prompt + size for size in texts.values()]
    return (0.5 * prompt + 2.0 * (sum(sizes) + row.cut_tokens) + 0.25 * sum(read)) / 1e6


def counted(running: Any) -> float:
    return sum(
        running.metric("bond_cost_usd_total", arm=arm) for arm in ("reference", "bon", "distilled")
    )


async def row_of(running: Running, body: dict[str, Any]) -> CompletionRecord:
    row = await running.gateway.store.completions.get(row_id(body))
    assert row is not None
    return row


def test_usd_of_tokens() -> None:
    prices = PricesConfig(prompt_tokens=3, completion_tokens=15, reward_tokens=0.5)
    assert prices.cost_usd(1_000_000, 200_000, 400_000) == 3 + 3 + 0.2
    assert PricesConfig(completion_tokens=10).cost_usd(10**9, 100, 10**9) == 0.001
    assert (PricesConfig().are_set, PricesConfig(reward_tokens=0).are_set) == (False, True)


async def test_every_candidate_is_paid_for_and_read_by_the_scorer(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(prices=PRICES)) as running:
        bon = await running.post("/v1/best-of-n", best_of=3, seed=1)
        single = await running.post("/v1/distilled", seed=1)
        rows = [await row_of(running, answer.json()) for answer in (bon, single)]
        costs = [answer.json()["usage"]["bond"]["cost_usd"] for answer in (bon, single)]
        assert [c.score is not None for c in rows[0].candidates] == [True] * 3
        assert costs == [pytest.approx(expected(row), rel=1e-12) for row in rows]
        prompt, drawn = len(rows[0].prompt_token_ids), rows[0].generated_tokens
        read = [answer.json()["usage"]["bond"]["reward_tokens"] for answer in (bon, single)]
        assert read == [3 * prompt + drawn, 0]
        assert costs[0] == pytest.approx(
            (0.5 * prompt + 2 * drawn + 0.25 * (3 * prompt + drawn)) / 1e6
        )
        assert [float(a.headers[HEADER]) for a in (bon, single)] == pytest.approx(costs, abs=1e-12)
        assert "e" not in bon.headers[HEADER]
        assert running.metric("bond_cost_usd_total", arm="bon") == pytest.approx(costs[0])
        assert running.metric("bond_cost_usd_total", arm="distilled") == pytest.approx(costs[1])
        listed = (await running.client.get(f"/v1/chat/completions/{bon.json()['id']}")).json()
        told = bon.json()["usage"]
        assert told["bond"].pop("cost_usd")
        assert listed["usage"] == told  # prices may have changed since


async def test_what_the_scorer_could_not_score_is_not_charged_as_read(
    run: Run, make_config: MakeConfig, rewards_file: Any
) -> None:
    config = make_config(prices=PRICES, scorer=scorer(rewards_file, "raises"))
    async with run(config) as running:
        answer = (await running.post("/v1/best-of-n", best_of=2)).json()
        row = await row_of(running, answer)
        assert answer["bond"]["degraded"] == "scoring_failed"
        drawn = (0.5 * len(row.prompt_token_ids) + 2 * row.generated_tokens) / 1e6
        assert answer["usage"]["bond"]["cost_usd"] == pytest.approx(drawn, rel=1e-12)


async def test_of_several_prompts_the_cost_is_the_sum(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(prices=PRICES)) as running:
        body = {"model": f"{MODEL}:bon", "prompt": ["Once", "Dear customer, ", "def"], "best_of": 2}
        response = await running.client.post("/v1/completions", json=body)
        answer, rows = response.json(), await all_rows(running.gateway.store)
        each = {f"cmpl-{row.id}": expected(row) for row in rows}
        prompts = answer["bond"]["prompts"]
        assert len(each) == 3
        assert [p["usage"]["bond"]["cost_usd"] for p in prompts] == [
            pytest.approx(each[p["id"]], rel=1e-12) for p in prompts
        ]
        total = pytest.approx(sum(each.values()), abs=1e-12)
        assert answer["usage"]["bond"]["cost_usd"] == total
        assert float(response.headers[HEADER]) == total
        assert counted(running) == total


async def test_arms_are_compared_by_what_making_their_answers_cost(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(prices=PRICES)) as running:
        answer = (await running.post("/v1/compare", best_of=4)).json()
        rows = {f"chatcmpl-{row.id}": row for row in await all_rows(running.gateway.store)}
        arms = {arm["arm"]: arm for arm in answer["arms"]}
        for arm in arms.values():
            assert arm["score"] is not None
            assert arm["cost_usd"] == pytest.approx(expected(rows[arm["id"]]), rel=1e-12)
        single = rows[arms["distilled"]["id"]]
        assert [c.score for c in single.candidates] == [None]  # its score was made to compare
        assert counted(running) == pytest.approx(sum(arm["cost_usd"] for arm in arms.values()))


@pytest.mark.parametrize("arm", ["distilled", "bon"], ids=["tokens", "buffered"])
async def test_a_stream_tells_its_cost_in_its_usage(
    serve: Serve, make_config: MakeConfig, arm: str
) -> None:
    body: dict[str, Any] = {"model": f"{MODEL}:{arm}", "messages": HI, "best_of": None}
    async with serve(make_config(prices=PRICES)) as served:
        said = await told(
            served, "/v1/chat/completions", **body, stream_options={"include_usage": True}
        )
        [row] = await all_rows(served.gateway.store)
        assert HEADER not in said.headers
        cost = said.chunks[-1]["usage"]["bond"]["cost_usd"]
        assert cost == pytest.approx(expected(row), rel=1e-12)
        assert counted(served) == pytest.approx(cost)


async def test_what_a_deadline_cut_off_is_paid_for(run: Run, make_config: MakeConfig) -> None:
    # work on a candidate begins to count as tokens at once, and all of them after its delay
    engine = {"type": "fake", "capacity": 1, "delay_s": 0.2}
    async with run(make_config(engine=engine, prices=PRICES)) as running:
        Held(running.gateway.engine, let_go=3)
        response = await running.post(
            "/v1/best-of-n",
            best_of=16,
            max_tokens=60,
            logit_bias={str(END_TOKEN): -100},  # each is as long as it may be
            bond={"deadline_ms": 1500},
        )
        answer = response.json()
        row = await row_of(running, answer)
        assert answer["bond"]["degraded"] == "deadline"
        assert row.cut_tokens > 0
        cost = answer["usage"]["bond"]["cost_usd"]
        assert cost == pytest.approx(expected(row), rel=1e-12)
        late = await running.post("/v1/best-of-n", best_of=2, bond={"deadline_ms": 300})
        assert late.status_code == 504
        [failed] = [r for r in await all_rows(running.gateway.store) if r.status == "failed"]
        assert counted(running) == pytest.approx(cost + expected(failed))


async def test_a_replayed_answer_is_counted_once(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(prices=PRICES)) as running:
        body = {"messages": HI}
        first, again = [
            await running.client.post(
                "/v1/best-of-n", json=body, headers={"idempotency-key": "one"}
            )
            for _ in range(2)
        ]
        assert again.headers["x-bond-replayed"] == "true"
        assert again.headers[HEADER] == first.headers[HEADER]
        assert counted(running) == pytest.approx(first.json()["usage"]["bond"]["cost_usd"])


async def test_without_prices_nothing_speaks_of_cost(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        answer = await running.post("/v1/best-of-n", best_of=2)
        compared = await running.post("/v1/compare")
        assert HEADER not in answer.headers
        assert "cost_usd" not in answer.text + compared.text
        assert "bond_cost_usd" not in (await running.client.get("/metrics")).text
        assert running.gateway.metrics.answers.on_answer == []


async def test_equal_candidates_are_read_once_and_cost_once(
    run: Run, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(prices={"prompt_tokens": 0.0, "reward_tokens": 1.0})
    async with run(config) as running:
        same = Completion("abc", (1, 2, 3), (-0.5, -0.5, -0.5), "stop")

        async def generate(*_: Any) -> Generation:
            return Generation((9, 9), (same,) * 4)

        monkeypatch.setattr(running.gateway.engine, "generate", generate)
        body = (await running.post("/v1/best-of-n", best_of=4)).json()
        assert body["usage"]["bond"]["cost_usd"] == pytest.approx((2 + 3) / 1e6)
