"""The recipe's sampler, on a small random model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bond_demo.making import sampler
from bond_demo.making.sampler import MAX_NEW_TOKENS, sample_answers

PROMPTS = [[1, 3, 4], [1, 5], [1, 3, 6, 7, 8]]
END = 2


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    """A random policy over twelve tokens whose answers end after a few of them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=1, max_position_embeddings=128, bos_token_id=1, eos_token_id=END,
        pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def full_logprobs(model: LlamaForCausalLM, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """Log-probabilities of an answer's tokens, by one forward pass without padding or cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]


def test_log_probabilities_are_those_of_an_unpadded_pass(tiny: LlamaForCausalLM) -> None:
    for prompt, answers in zip(PROMPTS, sample_answers(tiny, PROMPTS, 8, seed=1), strict=True):
        assert len(answers) == 8
        for answer in answers:
            expected = full_logprobs(tiny, prompt, list(answer.token_ids)).sum().item()
            assert answer.logprob == pytest.approx(expected, abs=1e-4)


def test_an_answer_ends_with_its_only_end_of_sequence_or_is_cut(tiny: LlamaForCausalLM) -> None:
    for answers in sample_answers(tiny, PROMPTS, 40, seed=2):
        for answer in answers:
            if answer.finish_reason == "stop":
                assert answer.token_ids.index(END) == len(answer.token_ids) - 1
            else:
                assert END not in answer.token_ids
                assert len(answer.token_ids) == MAX_NEW_TOKENS


def test_the_seed_decides_the_draws(tiny: LlamaForCausalLM) -> None:
    first = sample_answers(tiny, PROMPTS, 8, seed=3)
    assert first == sample_answers(tiny, PROMPTS, 8, seed=3)
    assert first != sample_answers(tiny, PROMPTS, 8, seed=4)


def test_first_tokens_follow_the_policy(tiny: LlamaForCausalLM) -> None:
    count = 4_000
    drawn = sample_answers(tiny, [PROMPTS[0]], count, seed=5)[0]
    with torch.inference_mode():
        expected = tiny(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    seen = torch.bincount(torch.tensor([a.token_ids[0] for a in drawn]), minlength=12)
    statistic = ((seen - count * expected) ** 2 / (count * expected)).sum().item()
    assert statistic < 31.3  # the .999 quantile of chi-square with 11 degrees of freedom


def test_batches_do_not_mix_prompts_up(
    tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "ROWS_PER_BATCH", 4)
    prompts = [[1, 3 + place % 9, *[4] * (place % 5)] for place in range(11)]
    for prompt, answers in zip(prompts, sample_answers(tiny, prompts, 3, seed=6), strict=True):
        for answer in answers:
            expected = full_logprobs(tiny, prompt, list(answer.token_ids)).sum().item()
            assert answer.logprob == pytest.approx(expected, abs=1e-4)
