"""Which reference samples are read back, and which are drawn anew."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tiny_models import make_policy
from tiny_training import REWARD

from bond_core.config import FunctionScorerConfig
from bond_core.engines.local import LocalEngine
from bond_core.engines.local.loading import load_policy
from bond_core.fingerprints import model_digest
from bond_core.rewards import build_scorer
from bond_core.types import Message, SamplingParams
from bond_trainer.draws import Draws, Scorers
from bond_trainer.reference_draws import reference_draws

PROMPTS = [(Message("user", f"question {number}"),) for number in range(2)]
PARAMS = SamplingParams(max_tokens=6)


async def drawn(engine: LocalEngine, rewards: Path, cache: Path) -> Draws:
    """With the scorer as its file is now."""
    scorer = build_scorer(FunctionScorerConfig(function=f"{rewards}:reward"))
    await scorer.start()
    found = await reference_draws(engine, PROMPTS, PARAMS, 2, 0, Scorers(scorer), cache)
    await scorer.close()
    return found


async def engine_of(path: Path) -> LocalEngine:
    model, tokenizer = load_policy(path, "float32", "cpu")
    engine = LocalEngine.over(
        model,
        tokenizer,
        max_rows=8,
        max_context_tokens=64,
        name="tiny",
        base_revision=model_digest(path),
    )
    await engine.start()
    return engine


@pytest.fixture
async def engine(tiny_policy_path: Path) -> AsyncIterator[LocalEngine]:
    opened = await engine_of(tiny_policy_path)
    yield opened
    await opened.close()


async def test_the_same_circumstances_are_read_back(engine: LocalEngine, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARD)
    first = await drawn(engine, rewards, tmp_path / "cache")
    again = await drawn(engine, rewards, tmp_path / "cache")
    assert first.generations
    assert again.generations == ()  # what is read back has none
    assert again.rewards_PS.tolist() == first.rewards_PS.tolist()
    assert len(list((tmp_path / "cache").iterdir())) == 1


async def test_an_edited_reward_scores_anew(engine: LocalEngine, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARD)
    first = await drawn(engine, rewards, tmp_path / "cache")
    rewards.write_text(REWARD.replace("return [text", "return [1 + text"))
    edited = await drawn(engine, rewards, tmp_path / "cache")
    assert edited.rewards_PS == pytest.approx(first.rewards_PS + 1)


async def test_other_base_weights_draw_anew(engine: LocalEngine, tmp_path: Path) -> None:
    rewards = tmp_path / "rewards.py"
    rewards.write_text(REWARD)
    await drawn(engine, rewards, tmp_path / "cache")
    other = await engine_of(make_policy(tmp_path / "tiny-policy", seed=9))
    assert other.info.tokenizer_sha256 == engine.info.tokenizer_sha256
    anew = await drawn(other, rewards, tmp_path / "cache")
    await other.close()
    assert anew.generations
