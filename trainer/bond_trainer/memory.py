"""How much memory a training run needs, from the shapes of its parts. Pure arithmetic.

Parts that are held (weights, factors, their gradients and moments) are exact. What a phase needs
beside them is an upper bound for decoders with attention and a gated feed-forward part. The phases
take turns, but on a CPU each runs in a thread of its own, whose allocator keeps what it has freed,
so that they add up; an accelerator has one pool, and there only the largest counts. The process
itself (Python and its libraries) is not counted, nor what an allocator loses between its blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT32 = 4
LOGIT_COPIES = 8
"""Tensors as large as a chunk of logits: own and other law, their difference, and gradients."""
SAMPLING_COPIES = 4
"""Of a row of logits while it is drawn from."""
RESIDENT_VERSIONS = 3
"""Merged copies that the engine holds: policy, anchor, incumbent."""
ROWS_GROW_BY = 2
"""The cache of running rows doubles when it is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What of an architecture decides how much memory it takes."""

    num_parameters: int
    """Tied ones once."""
    weight_bytes: int
    """Of one number."""
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_key_value_heads: int
    head_size: int
    vocabulary: int
    adapted: tuple[tuple[int, int], ...] = ()
    """Inputs and outputs of every module that carries an adapter."""

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return self.num_parameters * self.weight_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs over the model at once."""

    rank: int
    freeze_a: bool
    prompts_per_step: int
    samples_per_prompt: int
    """Answers of policy and anchor to one prompt."""
    prompt_tokens: int
    answer_tokens: int
    micro_batch_tokens: int
    rollout_rows: int
    evaluation_rows: int
    """Answers that an evaluation asks for at once."""
    chunk_elements: int
    """Logits held at once."""

    @property
    def group_tokens(self) -> int:
        """One prompt with all its answers, which no micro-batch divides."""
        return self.prompt_tokens + self.samples_per_prompt * self.answer_tokens

    @property
    def batch_tokens(self) -> int:
        """The largest micro-batch."""
        whole_step = self.prompts_per_step * self.group_tokens
        return max(min(self.micro_batch_tokens, whole_step), self.group_tokens)

    @property
    def running_rows(self) -> int:
        """Completions decoded at once."""
        step = self.prompts_per_step * self.samples_per_prompt
        return min(self.rollout_rows, max(step, self.evaluation_rows))


@dataclass(frozen=True, slots=True)
class Part:
    """Something that takes memory."""

    name: str
    num_bytes: int
    settings: tuple[str, ...] = ()
    """Lower these to make it smaller."""
    passing: bool = False
    """Whether it is freed before another passing part begins."""
    device: str = "cpu"


def peak_bytes(parts: Sequence[Part]) -> int:
    """All that is held, and what passes: on a CPU all of it, elsewhere each device's largest."""
    held = sum(part.num_bytes for part in parts if not part.passing or part.device == "cpu")
    largest: dict[str, int] = {}
    for part in parts:
        if part.passing and part.device != "cpu":
            largest[part.device] = max(largest.get(part.device, 0), part.num_bytes)
    return held + sum(largest.values())


def training_parts(shape: ModelShape, work: Workload, device: str = "cpu") -> list[Part]:
    """Everything that the learner and its engine hold or use in passing."""
    factors, trained = factor_bytes(shape, work)
    merged = sum(a * b for a, b in shape.adapted) * shape.weight_bytes
    rank = ("trainer.lora.rank",)
    batch = ("trainer.micro_batch_tokens", "sampling.max_tokens", "trainer.max_prompt_tokens")
    rows = ("trainer.rollout_rows", "sampling.max_tokens", "trainer.max_prompt_tokens")
    modules = ("trainer.lora.target_modules", "model.dtype")
    return [
        Part("model", shape.num_bytes, ("model.dtype",), device=device),
        Part("adapters", factors, rank, device=device),
        Part("gradients", trained, rank, device=device),
        Part("optimiser", moment_bytes(shape, work), rank, device=device),
        Part("merged versions", RESIDENT_VERSIONS * merged, modules, device=device),
        Part("publishing", 2 * merged, modules, passing=True, device=device),
        Part("sampling", sampling_bytes(shape, work), rows, passing=True, device=device),
        Part("learning", learning_bytes(shape, work), batch, passing=True, device=device),
    ]


def factor_bytes(shape: ModelShape, work: Workload) -> tuple[int, int]:
    """Of policy's and anchor's factors, and of those that are trained.

    With `freeze_a` both adapters share one A, and B alone is trained.
    """
    factor_a = FLOAT32 * work.rank * sum(inputs for inputs, _ in shape.adapted)
    factor_b = FLOAT32 * work.rank * sum(outputs for _, outputs in shape.adapted)
    if work.freeze_a:
        return factor_a + 2 * factor_b, factor_b
    return 2 * (factor_a + factor_b), factor_a + factor_b


def moment_bytes(shape: ModelShape, work: Workload) -> int:
    """Adam's two moments of every trained number, and a step count for every factor."""
    num_factors = len(shape.adapted) * (1 if work.freeze_a else 2)
    return 2 * factor_bytes(shape, work)[1] + FLOAT32 * num_factors


def sampling_bytes(shape: ModelShape, work: Workload) -> int:
    """Keys and values of all running rows at full length, and their logits."""
    columns = work.prompt_tokens + work.answer_tokens
    per_column = 2 * shape.num_layers * shape.num_key_value_heads * shape.head_size
    cache = ROWS_GROW_BY * work.running_rows * columns * per_column * shape.weight_bytes
    return cache + SAMPLING_COPIES * work.running_rows * shape.vocabulary * FLOAT32


def learning_bytes(shape: ModelShape, work: Workload) -> int:
    """Activations of one micro-batch, kept for its backward pass, and one chunk of logits.

    The base is frozen, so that a linear module keeps nothing of its own but the adapter's inner
    values, and its input if A is trained. Two norms keep input, scaled input and output in float32,
    attention queries and answers, before and after rotation, keys and values (of the prompt for
    each of its answers), the gated part four tensors of its inner width.
    """
    tokens = work.batch_tokens
    answers = -(-tokens // work.group_tokens) * work.samples_per_prompt
    columns = tokens + answers * work.prompt_tokens
    width = shape.weight_bytes
    attention = shape.num_heads * shape.head_size * width
    per_token = shape.num_layers * (
        6 * shape.hidden * FLOAT32 + 4 * attention + 4 * shape.intermediate * width
    )
    per_token += len(shape.adapted) * work.rank * FLOAT32
    if not work.freeze_a:
        per_token += FLOAT32 * sum(inputs for inputs, _ in shape.adapted)
    one_layer = 4 * tokens * max(shape.intermediate, shape.hidden) * FLOAT32
    kept = tokens * per_token + columns * shape.num_layers * 2 * attention + one_layer
    positions = min(max(1, work.chunk_elements // shape.vocabulary), tokens)
    return kept + LOGIT_COPIES * positions * shape.vocabulary * FLOAT32


def scoring_bytes(shape: ModelShape, rows: int, tokens: int) -> int:
    """One forward pass of a classifier: two layers' widest tensors, and the hidden states."""
    widest = 2 * shape.intermediate + 4 * shape.num_heads * shape.head_size + 4 * shape.hidden
    return rows * tokens * widest * max(shape.weight_bytes, FLOAT32)
