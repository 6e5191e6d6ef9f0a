"""The model's forward pass in the three shapes that the engine needs.

Every pass hands the model a ready 4-D attention mask and explicit positions, so that padding,
left-aligned rows and continued prompts are all exact.
"""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor

from bond_core.engines.local.kv_cache import PrefixCache, SlotCache
from bond_core.engines.local.weights import PolicyWeights, SwitchableModel


class Forward:
    """Runs a switchable model. Only the decode thread may call it."""

    def __init__(self, model: SwitchableModel) -> None:
        self.model = model
        self._hidden = torch.finfo(model.dtype).min
        accepted = inspect.signature(model.module.forward).parameters
        self._keep_last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def use(self, weights: PolicyWeights) -> None:
        """Run the next passes under a version."""
        self.model.use(weights)

    def prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, PrefixCache]:
        """Logits `[prompts, vocabulary]` after each prompt, and the prompts' cache.

        Rows are padded on the left, so that all end at the last column and only its logits are
        computed.
        """
        length = max(len(prompt) for prompt in prompts)
        padding = [length - len(prompt) for prompt in prompts]
        device = self.model.device
        tokens = torch.tensor(
            [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)],
            device=device,
        )
        pad_P1 = torch.tensor(padding, device=device)[:, None]
        column_T = torch.arange(length, device=device)
        visible = (column_T <= column_T[:, None]) & (column_T >= pad_P1[:, :, None])
        cache = PrefixCache()
        positions = (column_T - pad_P1).clamp_(min=0)
        logits = self._run(tokens, positions, visible[:, None], cache, **self._keep_last)
        return logits[:, -1], cache

    def decode(
        self, cache: SlotCache, tokens_B: Tensor, positions_B: Tensor, columns: int
    ) -> Tensor:
        """Logits `[rows, vocabulary]` after one more token per row, each at its own position."""
        positions_B1 = positions_B[:, None]
        visible = torch.arange(columns, device=tokens_B.device) <= positions_B1
        logits = self._run(tokens_B[:, None], positions_B1, visible[:, None, None], cache)
        return logits[:, -1]

    def extend(self, cache: PrefixCache, tokens_BT: Tensor) -> Tensor:
        """Logits `[rows, tokens, vocabulary]` of tokens that follow the cache's columns."""
        before = cache.get_seq_length()
        new = tokens_BT.shape[1]
        positions_T = torch.arange(before, before + new, device=tokens_BT.device)
        columns = torch.arange(before + new, device=tokens_BT.device)
        visible = columns <= positions_T[:, None]
        return self._run(
            tokens_BT, positions_T.expand(tokens_BT.shape[0], -1), visible[None, None], cache
        )

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor,
        visible: Tensor,
        cache: PrefixCache | SlotCache,
        **options: int,
    ) -> Tensor:
        # Additive, because the eager attention of transformers adds its mask. Expanded to all
        # rows, because some kernels do not broadcast it.
        mask = torch.zeros(visible.shape, dtype=self.model.dtype, device=tokens.device)
        mask.masked_fill_(~visible, self._hidden)
        return self.model.module(
            input_ids=tokens,
            attention_mask=mask.expand(tokens.shape[0], -1, -1, -1),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **options,
        ).logits
