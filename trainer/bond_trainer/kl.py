"""KL to the reference, exactly per token, on prefixes that the policy sampled.

KL(policy || reference) of whole answers is the expectation, over the policy's samples, of the sum
over their tokens of the KL between the two next-token laws: the Rao-Blackwellised estimator of
arXiv 2504.10637, unbiased, never negative, and of less variance than the log-ratio of the chosen
tokens. Temperature applies to both laws.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bond_core.types import Generation
from bond_trainer.draws import FloatArray
from bond_trainer.head import VocabularyHead
from bond_trainer.lora import AdapterName, LoraPair
from bond_trainer.objectives.token_divergences import kl

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
        values[indices] = _batch_kl(pair, name, [rows[i] for i in indices], temperature)
    return values.reshape(len(generations), -1)


@torch.no_grad()
def _batch_kl(
    pair: LoraPair,
    name: AdapterName,
    batch: Sequence[tuple[Sequence[int], Sequence[int]]],
    temperature: float,
) -> FloatArray:
    """For each row the sum over its tokens; the laws of few positions are held at once."""
    head = VocabularyHead(pair.model)
    with pair.using(name):
        policy_MD, row_M = _completion_positions(head, batch)
    with pair.using(None):
        reference_MD, _ = _completion_positions(head, batch)
    sums = torch.zeros(len(batch), dtype=torch.float64, device=policy_MD.device)
    for chunk in head.chunks(len(row_M)):
        divergence_M = kl(
            head.log_laws(policy_MD[chunk], temperature),
            head.log_laws(reference_MD[chunk], temperature),
        )
        sums.index_add_(0, row_M[chunk], divergence_M.double())
    return sums.cpu().numpy()


def _completion_positions(
    head: VocabularyHead, batch: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[Tensor, Tensor]:
    """What the head takes before each completion token, row after row, and the tokens' rows."""
    longest = max(len(prompt) + len(completion) for prompt, completion in batch)
    input_ids_BT = torch.zeros((len(batch), longest), dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    predicts_BT = torch.zeros_like(input_ids_BT, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(batch):
        tokens = torch.tensor([*prompt, *completion])
        input_ids_BT[i, : len(tokens)] = tokens
        mask_BT[i, : len(tokens)] = 1
        predicts_BT[i, len(prompt) - 1 : len(tokens) - 1] = True
    hidden_BTD = head.hidden(
        input_ids=input_ids_BT.to(head.device),
        attention_mask=mask_BT.to(head.device),
        use_cache=False,
    )
    predicts_BT = predicts_BT.to(head.device)
    return hidden_BTD[predicts_BT], predicts_BT.nonzero()[:, 0]
