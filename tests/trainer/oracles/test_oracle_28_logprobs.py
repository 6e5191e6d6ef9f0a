"""Oracle 28: what the sampler says of its own samples is what the learner recomputes.

Same temperature, end of sequence included, padding without effect: so that at step 0, when policy,
anchor and reference are one, every log-ratio is 0 and the return is r_J.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mutants import mutant
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bond_core.config import JBondConfig
from bond_core.engines.local import LocalEngine
from bond_core.types import REFERENCE_VERSION, Message, SamplingParams
from bond_trainer import logprobs
from bond_trainer.logprobs import (
    TokenRow,
    backward_sequence_logprobs,
    sequence_logprobs,
    token_logprobs,
)
from bond_trainer.objectives import RolloutInputs, jbond_loss

VOCAB_SIZE, EOS, MAX_TOKENS = 13, 2, 7
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 4, 4], [5, 1]]


@dataclass(frozen=True)
class Sampled:
    """What a sampler drew, and the log-probability that it gives."""

    rows: list[TokenRow]
    logprobs_R: Tensor


@pytest.fixture(scope="module")
def model() -> PeftModel:
    """A float64 Llama of 2 layers with the adapters `policy` and `anchor`, both still zero."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        eos_token_id=EOS,
        pad_token_id=0,
        bos_token_id=None,
    )
    lora = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks by a deprecated name
        wrapped = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="policy")
    wrapped.add_adapter("anchor", lora)
    return wrapped.double().eval()


@pytest.fixture
def moved(model: PeftModel) -> PeftModel:
    """The same, with the policy away from the anchor; undone afterwards."""
    model.set_adapter("policy")
    moved = [p for name, p in model.named_parameters() if "lora_B.policy" in name]
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in moved:
            parameter.normal_(std=0.2, generator=generator)
    yield model
    with torch.no_grad():
        for parameter in moved:
            parameter.zero_()


@torch.no_grad()
def sample(model: nn.Module, temperature: float, per_prompt: int = 3) -> Sampled:
    """Plain ancestral sampling, one row and one token at a time, no cache and no padding."""
    generator = torch.Generator().manual_seed(11)
    rows: list[TokenRow] = []
    logprobs: list[Tensor] = []
    for prompt in PROMPTS * per_prompt:
        drawn: list[int] = []
        total = torch.zeros((), dtype=torch.float64)
        while len(drawn) < MAX_TOKENS and EOS not in drawn:
            logits = model(input_ids=torch.tensor([prompt + drawn])).logits[0, -1]
            law = (logits / temperature).softmax(dim=-1)
            token = int(torch.multinomial(law, 1, generator=generator))
            total += law[token].log()
            drawn.append(token)
        rows.append(TokenRow(prompt, drawn))
        logprobs.append(total)
    ended = [row.completion_token_ids[-1] == EOS for row in rows]
    assert any(ended)
    assert not all(ended)
    return Sampled(rows, torch.stack(logprobs))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_oracle_28_step_0(model: PeftModel, temperature: float):
    with model.disable_adapter():
        drawn = sample(model, temperature)
        reference_R = sequence_logprobs(model, drawn.rows, temperature=temperature).detach()
    found = {}
    for adapter in ("policy", "anchor"):
        model.set_adapter(adapter)
        found[adapter] = sequence_logprobs(model, drawn.rows, temperature=temperature).detach()
        torch.testing.assert_close(found[adapter], drawn.logprobs_R, rtol=0, atol=1e-10)
    torch.testing.assert_close(reference_R, drawn.logprobs_R, rtol=0, atol=1e-10)

    generator = torch.Generator().manual_seed(2)
    rewards_B5 = torch.randint(0, 5, (len(drawn.rows), 5), generator=generator).double()
    inputs = RolloutInputs(
        policy_logprobs_BPT=found["policy"][:, None, None],
        anchor_logprobs_BPT=found["anchor"][:, None, None],
        forward_logprobs_BK=torch.zeros(len(drawn.rows), 4, dtype=torch.float64),
        policy_rewards_BP=rewards_B5[:, :1],
        anchor_rewards_BK=rewards_B5[:, 1:],
    )
    metrics = jbond_loss(inputs, JBondConfig(kl="sequence", gamma=1.0)).metrics
    assert metrics["log_ratio_abs_max"] == 0
    assert metrics["loss_regulariser"] == 0
    assert metrics["penalty_rate"] > 0
    r_j = -torch.log(torch.tensor(16.0, dtype=torch.float64)) * metrics["penalty_rate"]
    assert metrics["return_mean"] == pytest.approx(float(r_j), abs=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_oracle_28_after_the_policy_moved(moved: PeftModel, temperature: float):
    moved.set_adapter("policy")
    drawn = sample(moved, temperature)
    policy_R = sequence_logprobs(moved, drawn.rows, temperature=temperature).detach()
    torch.testing.assert_close(policy_R, drawn.logprobs_R, rtol=0, atol=1e-10)
    moved.set_adapter("anchor")
    anchor_R = sequence_logprobs(moved, drawn.rows, temperature=temperature).detach()
    with moved.disable_adapter():
        reference_R = sequence_logprobs(moved, drawn.rows, temperature=temperature).detach()
    torch.testing.assert_close(anchor_R, reference_R, rtol=0, atol=1e-10)
    assert float((policy_R - anchor_R).abs().min()) > 1e-4


@pytest.mark.parametrize("max_batch_tokens", [1, 20, 10_000])
def test_oracle_28_batching_and_padding_change_nothing(moved: PeftModel, max_batch_tokens: int):
    moved.set_adapter("policy")
    drawn = sample(moved, 1.0)
    batched_R = sequence_logprobs(moved, drawn.rows, max_batch_tokens=max_batch_tokens).detach()
    torch.testing.assert_close(batched_R, drawn.logprobs_R, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("original", "replacement"),
    [
        ("[row.sum() for row in tokens]", "[row[:-1].sum() for row in tokens]"),
        ("[row.sum() for row in tokens]", "[row.mean() for row in tokens]"),
        ("wanted_MD[chunk], temperature)", "wanted_MD[chunk], 1.0)"),
        (
            "range(len(row.prompt_token_ids) - 1, len(tokens) - 1)",
            "range(len(row.prompt_token_ids), len(tokens))",
        ),
    ],
    ids=["end of sequence dropped", "mean over tokens", "no temperature", "shifted by one"],
)
def test_oracle_28_notices_errors(moved: PeftModel, original: str, replacement: str):
    def error(module: ModuleType) -> float:
        found_R = module.sequence_logprobs(moved, rows, temperature=0.7).detach()
        return float((found_R - drawn.logprobs_R).abs().max())

    moved.set_adapter("policy")
    drawn = sample(moved, 0.7)
    rows = [logprobs.TokenRow(r.prompt_token_ids, r.completion_token_ids) for r in drawn.rows]
    assert error(logprobs) < 1e-10
    with mutant(logprobs, original, replacement) as wrong:
        assert error(wrong) > 1e-2


@pytest.mark.parametrize("temperature", [1.0, 0.8])
async def test_oracle_28_local_engine(tiny_policy_path: Path, temperature: float):
    """The served sampler, with its cache and its batches, in float32."""
    model = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_path)
    engine = LocalEngine.over(model, tokenizer, max_rows=16, max_context_tokens=256, name="tiny")
    params = SamplingParams(max_tokens=100, temperature=temperature, seed=3)
    await engine.start()
    try:
        drawn = await engine.generate(REFERENCE_VERSION, [Message("user", "hello")], params, n=12)
    finally:
        await engine.close()
    assert {c.finish_reason for c in drawn.completions} == {"stop", "length"}
    rows = [TokenRow(drawn.prompt_token_ids, c.token_ids) for c in drawn.completions]
    with torch.no_grad():
        found = sequence_logprobs(model, rows, temperature=temperature)
    expected = torch.tensor([c.logprob for c in drawn.completions])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def gradients(model: nn.Module, run: Callable[[], object]) -> list[Tensor]:
    parameters = [p for name, p in model.named_parameters() if "lora_B.policy" in name]
    for parameter in parameters:
        parameter.grad = None
    run()
    found = [p.grad.clone() for p in parameters if p.grad is not None]
    assert len(found) == len(parameters)
    return found


def test_backward_by_batches_is_the_whole_gradient(moved: PeftModel):
    moved.set_adapter("policy")
    rows = sample(moved, 1.0).rows
    coefficients_R = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    coefficients_R[3] = 0.0

    def whole() -> None:
        (sequence_logprobs(moved, rows) * coefficients_R).sum().backward()

    values: list[Tensor] = []

    def by_batches() -> None:
        values.append(backward_sequence_logprobs(moved, rows, coefficients_R, max_batch_tokens=24))

    for one, other in zip(gradients(moved, whole), gradients(moved, by_batches), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    expected_R = sequence_logprobs(moved, rows).detach()
    expected_R[3] = torch.nan  # skipped
    torch.testing.assert_close(values[0], expected_R, rtol=0, atol=1e-10, equal_nan=True)
    assert not values[0].requires_grad


def test_tokens_of_a_row_add_up(moved: PeftModel):
    rows = sample(moved, 1.0).rows
    tokens = token_logprobs(moved, rows)
    assert [len(t) for t in tokens] == [len(r.completion_token_ids) for r in rows]
    sums = torch.stack([t.sum() for t in tokens])
    assert torch.equal(sums, sequence_logprobs(moved, rows))


def test_narrow_models_get_a_float32_softmax(tiny_policy_path: Path):
    narrow = AutoModelForCausalLM.from_pretrained(tiny_policy_path, dtype=torch.bfloat16)
    rows = [TokenRow([5, 6], [7, 8, 1])]
    with torch.no_grad():
        found = sequence_logprobs(narrow, rows)
        logits = narrow(input_ids=torch.tensor([[5, 6, 7, 8, 1]])).logits.float()
    assert found.dtype == torch.float32
    expected = sum(logits[0, t].log_softmax(-1)[token] for t, token in ((1, 7), (2, 8), (3, 1)))
    assert float(found[0]) == pytest.approx(float(expected), abs=1e-5)


def test_what_has_no_logprob_is_refused(model: PeftModel):
    row = TokenRow([1], [2])
    with pytest.raises(ValueError, match="row 1 has an empty"):
        sequence_logprobs(model, [row, replace(row, completion_token_ids=[])])
    with pytest.raises(ValueError, match="temperature must be positive"):
        sequence_logprobs(model, [row], temperature=0)
