"""Key-value caches whose rows have lengths of their own.

transformers' caches append one column for all rows, so a batch must start and grow together. Here
each row writes at its own position (rows are left-aligned and the attention mask hides what lies
beyond), which lets rows enter and leave a running batch at any step.
"""

import torch
from torch import Tensor
from transformers.cache_utils import Cache

_LENGTH_QUANTUM = 64
"""Cache columns are allocated in multiples of this, so that growth is seldom."""


class PrefixCache(Cache):
    """Keeps what one forward pass over prompts computes, appending pass by pass.

    Rows share one length. A cache made `over` a one-row cache shows its columns to any number of
    rows, which is how completions of one prompt are scored without repeating the prompt.
    """

    def __init__(self, over: "PrefixCache | None" = None) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = list(over.keys) if over is not None else []
        self.values: list[Tensor] = list(over.values) if over is not None else []

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Append `[rows, heads, new, size]` states to a layer; return all of its states."""
        if layer_idx >= len(self.keys):
            self.keys.append(key_states)
            self.values.append(value_states)
        else:
            rows = key_states.shape[0]
            old_keys = self.keys[layer_idx].expand(rows, -1, -1, -1)
            old_values = self.values[layer_idx].expand(rows, -1, -1, -1)
            self.keys[layer_idx] = torch.cat([old_keys, key_states], dim=2)
            self.values[layer_idx] = torch.cat([old_values, value_states], dim=2)
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns held."""
        return self.keys[layer_idx].shape[2] if self.keys else 0

    def row(self, index: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Per layer, the keys and values `[heads, length, size]` of a row's last columns."""
        return [
            (keys[index, :, keys.shape[2] - length :], values[index, :, values.shape[2] - length :])
            for keys, values in zip(self.keys, self.values, strict=True)
        ]


class SlotCache(Cache):
    """The running rows' keys and values: per layer two tensors `[slots, columns, heads, size]`,
    the order in which attention on a CPU reads fastest.

    Slots `0..rows-1` are in use, without gaps. Before each forward pass `aim` says how many rows
    take part and where each writes; `update` then stores one column per row and returns views of
    the slots and columns in use, copying nothing.
    """

    def __init__(self, like: list[tuple[Tensor, Tensor]]) -> None:
        """`like` is a row as `PrefixCache.row` gives it, for the shapes, type and device."""
        super().__init__(layers=[])
        self._keys = [_empty(keys) for keys, _ in like]
        self._values = [_empty(values) for _, values in like]
        self._rows = 0
        self._columns = 0
        self._index: tuple[Tensor, Tensor] | None = None

    def aim(self, slots: Tensor, positions: Tensor, columns: int) -> None:
        """Set up the next pass: row i writes slot `slots[i] == i` at column `positions[i]`, and
        attention spans the first `columns` columns."""
        self._rows = slots.shape[0]
        self._columns = columns
        self._index = (slots, positions)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Store `[rows, heads, 1, size]` states; return `[rows, heads, columns, size]` views."""
        if self._index is None:
            raise RuntimeError("SlotCache.update before aim")
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        slots, positions = self._index
        keys[slots, positions] = key_states[:, :, 0]
        values[slots, positions] = value_states[:, :, 0]
        rows, columns = self._rows, self._columns
        return keys[:rows, :columns].transpose(1, 2), values[:rows, :columns].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns that the next pass spans, itself not counted."""
        return max(self._columns - 1, 0)

    def reserve(self, slots: int, columns: int) -> None:
        """Make room for so many slots and columns, keeping what is stored.

        New room is zero, not uninitialised: hidden columns have weight 0, and 0 times NaN is NaN.
        """
        held_slots, held_columns = self._keys[0].shape[:2]
        if slots <= held_slots and columns <= held_columns:
            return
        slots = held_slots if slots <= held_slots else max(slots, 2 * held_slots)
        columns = max(held_columns, -(-columns // _LENGTH_QUANTUM) * _LENGTH_QUANTUM)
        for held in (self._keys, self._values):
            for layer, tensor in enumerate(held):
                grown = tensor.new_zeros((slots, columns, *tensor.shape[2:]))
                grown[:held_slots, :held_columns] = tensor
                held[layer] = grown

    def write(self, prompt: list[tuple[Tensor, Tensor]], first_slot: int, slots: int) -> None:
        """Copy one prompt's keys and values into `slots` slots from `first_slot` on."""
        length = prompt[0][0].shape[1]
        end = first_slot + slots
        for layer, (keys, values) in enumerate(prompt):
            self._keys[layer][first_slot:end, :length] = keys.transpose(0, 1)
            self._values[layer][first_slot:end, :length] = values.transpose(0, 1)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row's first `length` columns to another slot."""
        for held in (*self._keys, *self._values):
            held[target, :length] = held[source, :length]


def _empty(like: Tensor) -> Tensor:
    """No slots and no columns yet, for rows `[heads, tokens, size]` like this one."""
    heads, _, size = like.shape
    return like.new_zeros((0, 0, heads, size))
