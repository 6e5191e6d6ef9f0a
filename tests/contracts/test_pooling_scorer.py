"""The pooling scorer against real vLLM: the in-process scorer of the same folder is its oracle."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MAX_POSITIONS, make_reward
from vllm_servers import POOLING_KEY

from bond_core.config import ClassifierScorerConfig, PoolingScorerConfig, SelfTestConfig
from bond_core.errors import ModelLoadError, ScorerUnavailableError, ScoringError
from bond_core.rewards import Scorer, build_scorer
from bond_core.types import Message

pytestmark = pytest.mark.vllm

TOLERANCE = 2e-5
"""Both compute in float32. The largest difference seen was 2.3e-6, over 300 answers of up to 200
tokens; scores spread over about 5."""

PROMPTS = [
    [Message("user", "Where is my order?")],
    [Message("system", "Be kind."), Message("user", "Can I return it? Ça coûte 5 €, grüße.")],
    [Message("user", "hi"), Message("assistant", "Hello!"), Message("user", " \n the refund ")],
]
ANSWERS = [
    f"Answer {i}: " + "it will arrive tomorrow " * (i % 8) + "é" * (i % 3) for i in range(64)
]


def over(url: str, **settings: Any) -> Scorer:
    """A scorer over the server, not yet started."""
    return build_scorer(PoolingScorerConfig(url=url, **{"api_key": POOLING_KEY, **settings}))


@pytest.fixture(params=["here", "there"])
def path(request: pytest.FixtureRequest, tiny_reward_path: Path) -> Path | None:
    return tiny_reward_path if request.param == "here" else None


@pytest.fixture
async def scorer(pooling_url: str, path: Path | None) -> AsyncIterator[Scorer]:
    scorer = over(pooling_url, path=path)
    await scorer.start()
    yield scorer
    await scorer.close()


@pytest.fixture
async def in_process(tiny_reward_path: Path) -> AsyncIterator[Scorer]:
    scorer = build_scorer(ClassifierScorerConfig(path=tiny_reward_path))
    await scorer.start()
    yield scorer
    await scorer.close()


async def test_scores_equal_those_of_the_model_in_this_process(
    scorer: Scorer, in_process: Scorer
) -> None:
    prompts = [PROMPTS[i % 3] for i in range(64)]
    theirs = await scorer.score(prompts, ANSWERS)
    ours = await in_process.score(prompts, ANSWERS)
    assert max(ours) - min(ours) > 1
    assert theirs == pytest.approx(ours, abs=TOLERANCE, rel=0)


async def test_a_conversation_may_be_as_long_as_the_server_says_and_no_longer(
    scorer: Scorer, in_process: Scorer, path: Path | None
) -> None:
    frame = 4  # <|user|> and <|assistant|>, each with an end
    prompt = [Message("user", "x")]
    fits = "y" * (MAX_POSITIONS - frame - 1)
    theirs = await scorer.score([prompt], [fits])
    assert theirs == pytest.approx(await in_process.score([prompt], [fits]), abs=TOLERANCE, rel=0)
    named = rf"completion 1.* {MAX_POSITIONS + 1} .*tokens.* {MAX_POSITIONS}"
    if path is None:  # the server names its bound first
        named = rf"completion 1.* {MAX_POSITIONS} tokens.* {MAX_POSITIONS + 1} input tokens"
    with pytest.raises(ScoringError, match=named) as caught:
        await scorer.score([prompt] * 2, ["y", f"{fits}y"])
    assert not isinstance(caught.value, ScorerUnavailableError)


async def test_a_self_test_that_fails_names_the_scores_that_the_model_gives(
    pooling_url: str, path: Path | None, in_process: Scorer
) -> None:
    usual = SelfTestConfig()
    turned = SelfTestConfig(good=usual.bad, bad=usual.good)
    prompt = [Message("user", turned.prompt)]
    good, bad = await in_process.score([prompt] * 2, [turned.good, turned.bad])
    assert good < bad
    with pytest.raises(ModelLoadError, match=f"{good:.4g} and the bad one {bad:.4g}"):
        await over(pooling_url, path=path, self_test=turned).start()


async def test_the_identity_is_the_same_at_every_start(scorer: Scorer) -> None:
    before = scorer.identity
    await scorer.score([PROMPTS[0]] * 64, ANSWERS)
    await scorer.close()
    await scorer.start()
    assert scorer.identity == before


async def test_a_model_that_is_not_served_is_refused(pooling_url: str) -> None:
    with pytest.raises(ModelLoadError, match=r"serves no model 'other'.* one of tiny-reward"):
        await over(pooling_url, model_name="other").start()


async def test_another_reward_model_and_another_template_are_noticed(
    pooling_url: str, tiny_reward_path: Path, tmp_path: Path
) -> None:
    other = make_reward(tmp_path / "other", seed=5)
    with pytest.raises(ModelLoadError, match="whose files are not those of"):
        await over(pooling_url, path=other).start()
    (other / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    with pytest.raises(ModelLoadError, match="different from token 0 on"):
        await over(pooling_url, path=other).start()


@pytest.mark.parametrize("key", [None, "sk-wrong"])
async def test_another_key_is_refused(pooling_url: str, key: str | None) -> None:
    with pytest.raises(ModelLoadError, match=r"refused the API key \(401: Unauthorized\)"):
        await over(pooling_url, api_key=key).start()
