"""KL to the reference and entropy, exact per token, on prefixes that the policy sampled.

KL(policy || reference) of whole answers is the expectation, over the policy's samples, of the sum
over their tokens of the KL between the two next-token laws: the Rao-Blackwellised estimator of
arXiv 2504.10637, unbiased, never negative, and of less variance than the log-ratio of the chosen
tokens. The entropy of whole answers is the expectation of the sum of next-token entropies in the
same way (the chain rule). Temperature applies to both laws.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bond_core.types import Generation
from bond_trainer.draws import FloatArray
from bond_trainer.head import VocabularyHead
from bond_trainer.objectives.token_divergences import entropy, kl

ROWS_PER_FORWARD = 32

Under = Callable[[], AbstractContextManager[nn.Module]]
"""Opens the model as one of its policies."""


@dataclass(frozen=True, slots=True)
class LawsAlong:
    """Sums over the tokens of each sampled answer, `(prompts, samples)`, nats."""

    kl_PS: FloatArray
    entropy_PS: FloatArray


def laws_along(
    policy: Under,
    reference: Under | None,
    generations: Sequence[Generation],
    temperature: float,
) -> LawsAlong:
    """Of the policy that sampled `generations`; without a reference it is the reference itself."""
    rows = [
        (generation.prompt_token_ids, completion.token_ids)
        for generation in generations
        for completion in generation.completions
    ]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    values_RX = np.zeros((len(rows), 2))
    for start in range(0, len(order), ROWS_PER_FORWARD):
        indices = order[start : start + ROWS_PER_FORWARD]
        batch = [rows[i] for i in indices]
        values_RX[indices] = _batch_sums(policy, reference, batch, temperature)
    kl_PS, entropy_PS = (column.reshape(len(generations), -1) for column in values_RX.T)
    return LawsAlong(kl_PS, entropy_PS)


@torch.no_grad()
def _batch_sums(
    policy: Under,
    reference: Under | None,
    batch: Sequence[tuple[Sequence[int], Sequence[int]]],
    temperature: float,
) -> FloatArray:
    """For each row KL and entropy over its tokens; the laws of few positions are held at once."""
    with policy() as model:
        head = VocabularyHead(model)
        policy_MD, row_M = _completion_positions(head, batch)
    reference_MD = policy_MD
    if reference is not None:
        with reference():
            reference_MD, _ = _completion_positions(head, batch)
    sums_XR = torch.zeros((2, len(batch)), dtype=torch.float64, device=policy_MD.device)
    for chunk in head.chunks(len(row_M)):
        law_MV = head.log_laws(policy_MD[chunk], temperature)
        if reference is not None:
            reference_MV = head.log_laws(reference_MD[chunk], temperature)
            sums_XR[0].index_add_(0, row_M[chunk], kl(law_MV, reference_MV).double())
        sums_XR[1].index_add_(0, row_M[chunk], entropy(law_MV).double())
    return sums_XR.T.cpu().numpy()


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
