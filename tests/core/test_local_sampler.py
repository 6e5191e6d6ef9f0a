"""The law that tokens are drawn from, against a plain reading of each parameter's definition."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from bond_core.engines.local.rows import (
    GenerateRequest,
    Row,
    initial_adjustment,
    seeded_uniforms,
)
from bond_core.engines.local.sampler import SamplingPlan, draw
from bond_core.engines.local.weights import PolicyWeights
from bond_core.types import SamplingParams

CPU = torch.device("cpu")
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, 1.0, -1.0, 0.2])
VOCAB_SIZE = len(LOGITS)
DRAWS = 20_000


def row(params: SamplingParams, drawn: tuple[int, ...] = (), index: int = 0) -> Row:
    """A row that has drawn some tokens already."""
    request = GenerateRequest(
        PolicyWeights("v0000", {}), (1,), params, 1, 32, lambda _: None, lambda _: None
    )
    noise = None if params.seed is None else seeded_uniforms(params.seed, index, 32)
    made = Row(request, index, initial_adjustment(params, VOCAB_SIZE, CPU), noise, None)
    for token in drawn:
        made.token_ids.append(token)
        made.penalise(token)
    return made


def reference_law(params: SamplingParams, drawn: tuple[int, ...] = ()) -> list[float]:
    """Probabilities by the definitions, one token at a time, in Python floats."""
    logits = LOGITS.double().tolist()
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    for token in set(drawn):
        logits[token] -= params.presence_penalty
        logits[token] -= params.frequency_penalty * drawn.count(token)
    weights = torch.softmax(torch.tensor(logits).double() / params.temperature, 0).tolist()
    ranked = sorted(range(VOCAB_SIZE), key=lambda token: -weights[token])
    if params.top_k:
        ranked = ranked[: params.top_k]
    mass = sum(weights[token] for token in ranked)
    kept: list[int] = []
    for token in ranked:
        if kept and sum(weights[t] for t in kept) / mass >= params.top_p:
            break
        kept.append(token)
    total = sum(weights[token] for token in kept)
    return [weights[t] / total if t in kept else 0.0 for t in range(VOCAB_SIZE)]


PLAIN = SamplingParams()
CASES = {
    "plain": (PLAIN, ()),
    "hot": (replace(PLAIN, temperature=1.7), ()),
    "cold": (replace(PLAIN, temperature=0.4), ()),
    "top_p": (replace(PLAIN, top_p=0.7), ()),
    "top_p that keeps one": (replace(PLAIN, top_p=0.05), ()),
    "top_k": (replace(PLAIN, top_k=3), ()),
    "top_k beyond the vocabulary": (replace(PLAIN, top_k=50), ()),
    "top_k and top_p": (replace(PLAIN, top_k=4, top_p=0.6), ()),
    "hot top_p": (replace(PLAIN, temperature=2.0, top_p=0.8), ()),
    "bias": (replace(PLAIN, logit_bias={0: -1.5, 6: 2.5}), ()),
    "presence": (replace(PLAIN, presence_penalty=0.8), (0, 0, 3)),
    "frequency": (replace(PLAIN, frequency_penalty=0.5), (0, 0, 3)),
    "everything": (
        SamplingParams(
            temperature=1.2,
            top_p=0.9,
            top_k=6,
            presence_penalty=0.3,
            frequency_penalty=0.4,
            logit_bias={4: 1.0},
        ),
        (1, 1, 5),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_follow_the_law_and_report_it(case: str) -> None:
    params, drawn = CASES[case]
    law = reference_law(params, drawn)
    generator = torch.Generator().manual_seed(11)
    plan = SamplingPlan.of([row(params, drawn)] * DRAWS, VOCAB_SIZE, CPU)
    tokens, logprobs, _ = draw(LOGITS.expand(DRAWS, -1), plan, generator)
    counts = Counter(tokens.tolist())
    possible = [token for token in range(VOCAB_SIZE) if law[token] > 0]
    assert set(counts) <= set(possible)
    if len(possible) > 1:
        observed = [counts[token] for token in possible]
        expected = [DRAWS * law[token] for token in possible]
        assert chisquare(observed, expected).pvalue > 1e-3
    for token, logprob in set(zip(tokens.tolist(), logprobs.tolist(), strict=True)):
        assert logprob == pytest.approx(torch.tensor(law[token]).log().item(), abs=1e-5)


def test_rows_of_one_batch_keep_their_own_parameters() -> None:
    params = [params for params, _ in CASES.values()]
    drawn = [tokens for _, tokens in CASES.values()]
    rows = [row(p, d) for p, d in zip(params, drawn, strict=True)]
    generator = torch.Generator().manual_seed(3)
    plan = SamplingPlan.of(rows, VOCAB_SIZE, CPU)
    for _ in range(200):
        tokens, logprobs, _ = draw(LOGITS.expand(len(rows), -1), plan, generator)
        for p, d, token, logprob in zip(
            params, drawn, tokens.tolist(), logprobs.tolist(), strict=True
        ):
            law = torch.tensor(reference_law(p, d))
            assert logprob == pytest.approx(law[token].log().item(), abs=1e-5)


def test_greedy_rows_take_the_first_of_the_best() -> None:
    rows = [row(replace(PLAIN, temperature=0.0)), row(PLAIN), row(replace(PLAIN, temperature=0.0))]
    logits = torch.tensor([[0.0, 3.0, 3.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    plan = SamplingPlan.of(rows, 3, CPU)
    tokens, logprobs, _ = draw(logits, plan, torch.Generator().manual_seed(0))
    assert tokens[0] == 1
    assert tokens[2] == 0
    assert logprobs[0] == logprobs[2] == 0.0
    assert logprobs[1] == pytest.approx(-torch.tensor(3.0).log().item())


def test_top_k_keeps_exactly_k_of_equals() -> None:
    plan = SamplingPlan.of([row(replace(PLAIN, top_k=2))] * 500, 6, CPU)
    tokens, _, _ = draw(torch.zeros(500, 6), plan, torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {0, 1}


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = torch.full((4000, 5), -torch.inf)
    logits[:, 3] = 0.0
    plan = SamplingPlan.of([row(PLAIN)] * 4000, 5, CPU)
    tokens, logprobs, _ = draw(logits, plan, torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {3}
    assert set(logprobs.tolist()) == {0.0}


def test_seeded_noise_is_a_rows_own() -> None:
    params = replace(PLAIN, seed=5)
    logits = torch.zeros(3, 1000)

    def tokens_of(rows: list[Row], engine_seed: int) -> list[int]:
        plan = SamplingPlan.of(rows, 1000, CPU)
        generator = torch.Generator().manual_seed(engine_seed)
        return draw(logits[: len(rows)], plan, generator)[0].tolist()

    alone = tokens_of([row(params)], 1)[0]
    crowd = tokens_of([row(PLAIN), row(params), row(params, index=1)], 2)
    assert crowd[1] == alone
    assert crowd[2] != alone
    assert alone == int(seeded_uniforms(5, 0, 1)[0] * 1000)


def test_neighbouring_seeds_and_candidates_are_unrelated() -> None:
    streams = [seeded_uniforms(seed, index, 500) for seed in (0, 1, 2) for index in (0, 1, 2)]
    correlations = torch.corrcoef(torch.tensor(streams)) - torch.eye(9)
    assert correlations.abs().max() < 0.2
    assert seeded_uniforms(1, 2, 5) == seeded_uniforms(1, 2, 500)[:5]


def test_penalties_count_what_was_drawn() -> None:
    made = row(replace(PLAIN, presence_penalty=1.0, frequency_penalty=0.25), drawn=(2, 2, 2, 4))
    assert made.adjustment is not None
    assert made.adjustment.tolist() == [0, 0, -1.75, 0, -1.25, 0, 0, 0]


def test_cumulative_mass_keeps_rare_tokens() -> None:
    """In single precision the sums would swallow tokens below 6e-8 once half the mass is past."""
    logits = torch.zeros(1, 3)
    logits[0, 1] = torch.tensor(1e-12).log()
    logits[0, 2] = torch.tensor(1e-12).log()
    rare = row(replace(PLAIN, seed=1))
    plan = SamplingPlan.of([rare], 3, CPU)
    edges = [0.0, 1 - 1.5e-12, 1 - 0.5e-12]
    for token, uniform in enumerate(edges):
        rare.uniforms = [uniform]
        assert draw(logits, plan, torch.Generator())[0].tolist() == [token]


def test_a_top_k_beyond_an_integer_of_64_bits_is_the_whole_vocabulary() -> None:
    plan = SamplingPlan.of([row(replace(PLAIN, top_k=2**63))], VOCAB_SIZE, CPU)
    assert plan.top_k is not None
    assert plan.top_k.tolist() == [VOCAB_SIZE]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_no_law_give_nan_in_their_row_only(
    temperature: float, value: float
) -> None:
    params = replace(PLAIN, temperature=temperature)
    logits = LOGITS.repeat(2, 1)
    logits[1, 3] = value
    plan = SamplingPlan.of([row(params), row(params)], VOCAB_SIZE, CPU)
    _, logprobs, _ = draw(logits, plan, torch.Generator().manual_seed(0))
    assert logprobs.isfinite().tolist() == [True, False]
