"""Training with reward models on servers: what the trainer does when one goes away."""

from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import web
from faulty_pooling_server import reset, running_server
from tiny_models import make_tokenizer
from tiny_training import config_of, prompts_file

from bond_core.config import PoolingScorerConfig
from bond_core.store import TrainingRecord
from bond_trainer import run_training
from bond_trainer.held_out import reference_sources
from bond_trainer.training_run import MAX_SCORING_FAILURES

AWAY = range(2, 2 + 2 * (MAX_SCORING_FAILURES + 1))
"""The requests that go unanswered, of which each attempt makes two."""


async def test_a_reward_server_that_is_away_for_long_costs_no_prompt_and_not_the_run(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "reward")
    evaluation = {"every_steps": 15, "num_prompts": 8, "min_prompts": 8}
    config = config_of(
        tmp_path, tiny_policy_path, poll_s=0.01, prompts_per_step=4, evaluation=evaluation
    )
    seen: list[TrainingRecord] = []
    async with running_server() as server:
        given = PoolingScorerConfig(url=server.url, path=tmp_path / "reward", self_test=None)
        requests = count(-4)  # four are the start's

        async def away(request: web.Request, data: list[dict[str, Any]]) -> web.Response | None:
            return await reset(request, data) if next(requests) in AWAY else None

        server.fault = away
        await run_training(
            config.model_copy(update={"scorer": given, "judge": None}),
            prompts_file=prompts_file(tmp_path),
            max_steps=4,
            on_progress=seen.append,
        )
    last = seen[-1]
    assert (last.state, last.step, last.error) == ("stopped", 4, None)
    assert "scoring_failed" not in last.counts
    assert last.counts["used"] == 4 * 4
    assert any("waiting for servers: " in (record.error or "") for record in seen)
    assert any("cannot be reached" in (record.error or "") for record in seen)


def test_kept_scores_depend_on_the_folder_of_a_pooling_scorer(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "reward")
    config = config_of(tmp_path, tmp_path / "model")
    url = "http://gpu-1:8001"
    for path, found in ((tmp_path / "reward", [tmp_path / "reward"]), (None, [])):
        scorer = PoolingScorerConfig(url=url, path=path)
        changed = config.model_copy(update={"scorer": scorer, "judge": None})
        assert reference_sources(changed) == [tmp_path / "model", *found]
