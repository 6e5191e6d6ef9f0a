"""KL of a version to the reference, exactly per token, on answers that the version sampled.

The KL of whole answers is the expectation, over the policy's own samples, of the sum over their
tokens of the KL between the two next-token laws: the Rao-Blackwellised estimator of arXiv
2504.10637. It is unbiased, never negative, and varies less than the log-ratio of the tokens drawn.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from bond_core.config import ModelConfig
from bond_core.pretrained import load_pretrained
from bond_core.types import Generation


def per_token_kl(
    model: ModelConfig, adapter: Path, generations: Sequence[Generation], temperature: float
) -> list[list[float]]:
    """KL in nats of each completion, summed over its tokens; one list for each generation.

    The temperature applies to both laws. Raises `ModelLoadError` if the base cannot be loaded.
    """
    base = load_pretrained(
        AutoModelForCausalLM, model.folder, model.dtype, "cpu", "a causal language model"
    )
    with warnings.catch_warnings():
        # PEFT asks transformers by a name that the latter has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        policy = PeftModel.from_pretrained(base, str(adapter)).eval()
    return [_of_one_prompt(policy, generation, temperature) for generation in generations]


@torch.inference_mode()
def _of_one_prompt(policy: PeftModel, generation: Generation, temperature: float) -> list[float]:
    laws = _log_laws(policy, generation, temperature)
    with policy.disable_adapter():
        reference_laws = _log_laws(policy, generation, temperature)
    return [
        float((p_TV.exp() * (p_TV - q_TV)).double().sum())
        for p_TV, q_TV in zip(laws, reference_laws, strict=True)
    ]


def _log_laws(policy: PeftModel, generation: Generation, temperature: float) -> list[Tensor]:
    """Log-probabilities of the next token before each token of each completion, `(T, V)`."""
    prompt = generation.prompt_token_ids
    rows = [[*prompt, *completion.token_ids] for completion in generation.completions]
    longest = max(map(len, rows))
    ids_BT = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    logits_BTV: Tensor = policy(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    return [
        (logits_TV[len(prompt) - 1 : len(row) - 1].float() / temperature).log_softmax(-1)
        for logits_TV, row in zip(logits_BTV, rows, strict=True)
    ]
