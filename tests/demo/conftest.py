"""The shipped world, loaded once, and one set of fresh answers that its tests share."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from bond_demo.making.measurements import ScoredSamples
from bond_demo.making.scored_samples import draw_samples, score_samples
from bond_demo.making.tokenizer import load_tokenizer
from bond_demo.rubric import flaws_in, gold_reward
from bond_demo.worlds import judge_path, policy_path, proxy_path, report_prompts

FRESH_PROMPTS, FRESH_SAMPLES = 48, 64


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small models gain little from more threads, and other tests run beside these."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The shipped chat tokenizer."""
    return load_tokenizer(policy_path())


@pytest.fixture(scope="session")
def policy() -> LlamaForCausalLM:
    """The shipped reference policy."""
    return AutoModelForCausalLM.from_pretrained(policy_path(), local_files_only=True).eval()


@pytest.fixture(scope="session")
def proxy() -> LlamaForSequenceClassification:
    """The shipped reward model that selects and trains."""
    model = AutoModelForSequenceClassification.from_pretrained(proxy_path(), local_files_only=True)
    return model.eval()


@pytest.fixture(scope="session")
def judge() -> LlamaForSequenceClassification:
    """The shipped second reward model."""
    model = AutoModelForSequenceClassification.from_pretrained(judge_path(), local_files_only=True)
    return model.eval()


@pytest.fixture(scope="session")
def fresh(
    policy: LlamaForCausalLM,
    proxy: LlamaForSequenceClassification,
    judge: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
) -> ScoredSamples:
    """Answers drawn now from the shipped policy to report prompts, scored by all three rewards."""
    prompts = report_prompts()[:FRESH_PROMPTS]
    conversations = [prompt.messages for prompt in prompts]
    samples = draw_samples(policy, tokenizer, conversations, FRESH_SAMPLES, seed=0)
    pairs = list(zip(conversations, samples.texts, strict=True))
    return ScoredSamples(
        texts=samples.texts,
        tokens=np.array([[len(drawn.token_ids) for drawn in row] for row in samples.drawn]),
        proxy=np.array(score_samples(proxy, tokenizer, samples)),
        judge=np.array(score_samples(judge, tokenizer, samples)),
        gold=np.array([[gold_reward(c, text) for text in texts] for c, texts in pairs]),
        flaws=np.array([[flaws_in(text) for text in texts] for texts in samples.texts]),
        template_held_out=np.array([prompt.template_held_out for prompt in prompts]),
    )
