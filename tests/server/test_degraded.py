"""A reward function that fails costs the ranking, never the answer."""

from pathlib import Path

import pytest
from running_gateway import MakeConfig, Run, row_id, scorer, settled


@pytest.mark.parametrize("function", ["raises", "not_a_number"])
async def test_the_first_candidate_is_returned_and_marked(
    run: Run, make_config: MakeConfig, rewards_file: Path, function: str
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, function))) as running:
        response = await running.post("/v1/best-of-n", bond={"return_candidates": True})
        body = response.json()
        await settled(running)
        store = running.gateway.store.completions
        record = await store.get(row_id(body))
        claimed = await store.claim("trainer", 10, 60.0)
        winners = await store.winners(1, 10)
        assert running.metric("bond_degraded_total", reason="scoring_failed") == 1
        # once after the answer, and once more if the sweep came by in the meantime
        assert running.metric("bond_follow_up_failures_total", step="score") in (1, 2)
    assert response.status_code == 200
    assert response.headers["x-bond-degraded"] == "scoring_failed"
    bond = body["bond"]
    assert bond["degraded"] == "scoring_failed"
    assert bond["score"] is None
    assert [c["score"] for c in bond["candidates"]] == [None] * 4
    assert body["choices"][0]["message"]["content"] == bond["candidates"][0]["text"]
    assert record is not None
    assert (record.status, record.degraded, record.chosen) == ("ok", "scoring_failed", (0,))
    assert record.error is not None
    assert function in record.error
    assert record.score is None
    assert (claimed, winners) == ([], [])


async def test_a_degraded_answer_is_scored_later_like_any_other(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "breaks_once"))) as running:
        body = (await running.post("/v1/best-of-n")).json()
        await settled(running)
        record = await running.gateway.store.completions.get(row_id(body))
        healthy = await running.post("/v1/best-of-n")
    assert body["bond"]["degraded"] == "scoring_failed"
    assert record is not None
    assert record.degraded == "scoring_failed"
    assert record.score == float(len(body["choices"][0]["message"]["content"]))
    assert "x-bond-degraded" not in healthy.headers


async def test_a_broken_scorer_does_not_touch_the_distilled_arm(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "raises"))) as running:
        response = await running.post("/v1/distilled")
    assert response.status_code == 200
    assert response.json()["bond"]["degraded"] is None
