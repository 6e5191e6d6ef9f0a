"""KL to the reference, exactly per token, on prefixes that the policy sampled.

KL(policy || reference) of whole answers is the expectation, over the policy's samples, of the sum
over their tokens of the KL between the two next-token laws: the Rao-Blackwellised estimator of
arXiv 2504.10637, unbiased, never negative, and of less variance than the log-ratio of the chosen
tokens. Temperature applies to both laws.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bond_core.types import Generation
from bond_trainer.draws import FloatArray
from bond_trainer.lora import AdapterName, LoraPair

ROWS_PER_FORWARD = 32


def kl_to_reference(
    pair: LoraPair, name: AdapterName, generations: Sequence[Generation], temperature: float
) -> FloatArray:
    """KL to the reference in nats per sampled answer, `(prompts, samples)`."""
    rows = [
        (generation.prompt_token_ids, completion.token_ids)
        for generation in generations
        for completion in generation.completions
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    values = np.zeros(len(rows))
    for start in range(0, len(order), ROWS_PER_FORWARD):
        indices = order[start : start + ROWS_PER_FORWARD]
        batch = [rows[i] for i in indices]
        with torch.no_grad():
            with pair.using(name) as model:
                policy = _next_token_laws(model, batch, temperature)
            with pair.using(None) as model:
                reference = _next_token_laws(model, batch, temperature)
        for i, p, q in zip(indices, policy, reference, strict=True):
            values[i] = float((p.exp() * (p - q)).double().sum())
    return values.reshape(len(generations), -1)


def _next_token_laws(
    model: nn.Module, batch: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float
) -> list[Tensor]:
    """Log-probabilities of every next token before each completion token, `(tokens, vocab)`."""
    longest = max(len(prompt) + len(completion) for prompt, completion in batch)
    input_ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    for i, (prompt, completion) in enumerate(batch):
        tokens = torch.tensor([*prompt, *completion])
        input_ids_BT[i, : len(tokens)] = tokens
        mask_BT[i, : len(tokens)] = 1
    device = next(model.parameters()).device
    logits_BTV = model(
        input_ids=input_ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False
    ).logits
    return [
        torch.log_softmax(
            logits_BTV[i, len(prompt) - 1 : len(prompt) + len(completion) - 1].float()
            / temperature,
            dim=-1,
        )
        for i, (prompt, completion) in enumerate(batch)
    ]
