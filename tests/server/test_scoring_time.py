"""What a deadline leaves to scoring."""

from pathlib import Path

import pytest
from running_gateway import MODEL, MakeConfig, scorer
from served_gateway import HI, Serve

from bond_server.services.scoring_time import ScoringTime


def test_a_tenth_is_set_aside_before_anything_was_scored() -> None:
    assert ScoringTime().set_aside_s(2.0) == pytest.approx(0.2)


def test_what_scoring_takes_lately_is_set_aside_with_a_margin_and_at_most_half() -> None:
    times = ScoringTime()
    times.observe(1.0)
    assert times.set_aside_s(6.0) == pytest.approx(1.5)
    assert times.set_aside_s(2.0) == pytest.approx(1.0)
    assert times.set_aside_s(40.0) == pytest.approx(4.0)
    times.observe(0.5)  # down slowly: 1.0 - 0.2 * 0.5
    assert times.set_aside_s(6.0) == pytest.approx(1.5 * 0.9)


async def test_a_scorer_that_was_too_slow_once_gets_the_time_it_needs(
    serve: Serve, make_config: MakeConfig, rewards_file: Path
) -> None:
    # scoring takes 0.2 s, and drawing would take all it is given: a candidate each 10 ms
    config = make_config(
        engine={"type": "fake", "capacity": 1, "delay_s": 0.01},
        scorer=scorer(rewards_file, "slow"),
        arms={"best_of": 4, "max_best_of": 512},
    )
    body = {"model": f"{MODEL}:bon", "messages": HI, "best_of": 512, "bond": {"deadline_ms": 700}}
    async with serve(config) as served:
        scores: list[float | None] = []
        for _ in range(30):
            response = await served.client.post("/v1/chat/completions", json=body)
            if response.status_code == 504:
                continue  # on a busy machine not one was drawn in time
            assert response.json()["bond"]["degraded"] == "deadline"
            scores.append(response.json()["bond"]["score"])
            if scores[-1] is not None:
                break
    assert scores[0] is None  # 70 ms were too short
    assert scores[-1] is not None
