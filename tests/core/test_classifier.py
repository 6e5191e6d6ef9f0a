"""The classifier scorer gives the model's own raw logits, or an error."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from bond_core.config import ClassifierScorerConfig
from bond_core.errors import ModelLoadError, ScoringError
from bond_core.rewards import build_scorer
from bond_core.rewards.classifier import ClassifierScorer
from bond_core.types import Message

PROMPT = [Message("user", "Where is my order?")]
ANSWERS = ["On its way.", "It will arrive tomorrow, we are sorry for the delay.", "no", ""]


@pytest.fixture
async def scorer(tiny_reward_path: Path) -> AsyncIterator[ClassifierScorer]:
    scorer = ClassifierScorer(ClassifierScorerConfig(path=tiny_reward_path, batch_size=3))
    await scorer.start()
    yield scorer
    await scorer.close()


async def test_scores_are_the_raw_logits_of_the_templated_conversation(
    scorer: ClassifierScorer, tiny_reward_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_path)
    expected: list[float] = []
    for answer in ANSWERS:
        text = f"<|user|>Where is my order?<|end|><|assistant|>{answer}<|end|>"
        with torch.no_grad():
            expected.append(model(**tokenizer(text, return_tensors="pt")).logits[0, 0].item())
    assert await scorer.score([PROMPT] * 4, ANSWERS) == pytest.approx(expected, abs=1e-5)
    assert max(expected) > 1 or min(expected) < 0, "a squashed score would pass"


async def test_what_arrives_meanwhile_is_scored_in_one_go(
    scorer: ClassifierScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tuple[int, ...]]] = []
    score_all = scorer._scores

    def spy(sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        batches.append(sequences)
        return score_all(sequences)

    monkeypatch.setattr(scorer, "_scores", spy)
    await asyncio.gather(*(scorer.score([PROMPT], [answer]) for answer in ANSWERS * 2))
    assert sum(map(len, batches)) <= 5, "the first alone, then the four distinct ones"
    assert len(batches) == 2 or len(batches[0]) == 4


async def test_too_long_is_an_error_and_others_are_scored(scorer: ClassifierScorer) -> None:
    limit = tiny_models.MAX_POSITIONS
    bad = scorer.score([PROMPT] * 2, ["fine", "z" * limit])
    good = scorer.score([PROMPT], ["fine"])
    failed, scored = await asyncio.gather(bad, good, return_exceptions=True)
    assert isinstance(failed, ScoringError)
    assert "completion 1" in str(failed)
    assert str(limit) in str(failed)
    assert isinstance(scored, list)


async def test_much_text_is_encoded_away_from_the_event_loop(
    scorer: ClassifierScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    encoded = scorer._encoded

    def spy(*pairs: Any) -> Any:
        threads.append(threading.get_ident())
        return encoded(*pairs)

    monkeypatch.setattr(scorer, "_encoded", spy)
    huge = [Message("user", "z" * 100_000)]
    for prompt, answer in ((huge, "a"), (PROMPT, "z" * 100_000)):
        with pytest.raises(ScoringError, match="completion 0"):
            await scorer.score([prompt], [answer])
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_what_is_not_finite_is_an_error_of_its_own_call(
    scorer: ClassifierScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_all = scorer._scores

    def poisoned(sequences: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        scores = score_all(sequences)
        return {
            s: float("nan") if len(s) == max(map(len, sequences)) else v for s, v in scores.items()
        }

    monkeypatch.setattr(scorer, "_scores", poisoned)
    outcomes = await asyncio.gather(
        scorer.score([PROMPT] * 2, ["no", "a longer answer"]),
        scorer.score([PROMPT] * 2, ["a", "no"]),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], ScoringError)
    assert "nan for completion 1" in str(outcomes[0])


async def test_a_failing_model_fails_its_calls_and_recovers(
    scorer: ClassifierScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: list[tuple[int, ...]]) -> dict[tuple[int, ...], float]:
        raise ArithmeticError("a broken kernel")

    with monkeypatch.context() as patch:
        patch.setattr(scorer, "_scores", broken)
        with pytest.raises(ScoringError, match="a broken kernel"):
            await scorer.score([PROMPT], ["a"])
    assert len(await scorer.score([PROMPT], ["a"])) == 1


async def test_a_model_without_padding_token_scores_the_same(
    tiny_reward_path: Path, tmp_path: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_path)
    tokenizer.save_pretrained(tmp_path)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    scorer = ClassifierScorer(ClassifierScorerConfig(path=tmp_path))
    await scorer.start()
    found = await scorer.score([PROMPT] * 4, ANSWERS)
    await scorer.close()
    padded = ClassifierScorer(ClassifierScorerConfig(path=tiny_reward_path))
    await padded.start()
    assert found == pytest.approx(await padded.score([PROMPT] * 4, ANSWERS), abs=1e-5)
    await padded.close()


async def test_an_encoder_can_judge_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_models.make_tokenizer()
    config = BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        num_labels=1,
        pad_token_id=0,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    scorer = build_scorer(ClassifierScorerConfig(path=tmp_path))
    await scorer.start()
    together = await scorer.score([PROMPT] * 4, ANSWERS)
    for answer, score in zip(ANSWERS, together, strict=True):
        assert await scorer.score([PROMPT], [answer]) == pytest.approx([score], abs=1e-5)
    await scorer.close()


async def test_what_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    policy = tiny_models.make_policy(tmp_path / "policy")
    with pytest.raises(ModelLoadError, match=r"reward model.*score\.weight"):
        await build_scorer(ClassifierScorerConfig(path=policy)).start()
    many = tiny_models.make_reward(tmp_path / "many", num_labels=3)
    with pytest.raises(ModelLoadError, match="3 labels"):
        await build_scorer(ClassifierScorerConfig(path=many)).start()
    with pytest.raises(ModelLoadError, match="does not exist"):
        await build_scorer(ClassifierScorerConfig(path=tmp_path / "nowhere")).start()
    (many / "chat_template.jinja").unlink()
    with pytest.raises(ModelLoadError, match="chat_template"):
        await build_scorer(ClassifierScorerConfig(path=many)).start()
