"""The engine contract: software that samples from a policy and scores tokens under it.

Gateway and trainer use the same protocol, so that what is evaluated offline is what is served.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bond_core.types import Completion, Conversation, Generation, SamplingParams, TextDelta

CHAT_FIELDS = frozenset(
    {
        "chat_template_kwargs", "documents", "include_reasoning", "parallel_tool_calls",
        "reasoning_effort", "tool_choice", "tools",
    }
)  # fmt: skip
"""Fields of `SamplingParams.further` that mean nothing where raw text is continued."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves and can do."""

    base_model: str
    tokenizer_sha256: str
    """Over the tokenizer's serialised form and its chat template; an adapter trained with another
    is refused."""
    max_context_tokens: int
    """Prompt and completion together."""
    adapters: bool
    """Whether adapters can be loaded; without, only the reference is served."""
    logprob_noise_nats: float
    """Largest difference seen between two evaluations of one sequence's log-probability, by
    different batching; the probe refuses versions that differ by less."""
    base_revision: str = ""
    """`fingerprints.model_digest` of the model that is served; an adapter of another is refused.
    Empty if the engine does not know the folder."""
    no_adapters_because: str = ""
    """Where `adapters` is false: what is missing, and what to add."""
    fields: frozenset[str] = frozenset()
    """What `SamplingParams.further` may hold."""


@dataclass(slots=True)
class Partial:
    """What `generate` has drawn so far, for whoever may give it up before its end."""

    prompt_token_ids: tuple[int, ...] = ()
    completions: dict[int, Completion] = field(default_factory=dict[int, Completion])
    """By index, in the order in which they ended."""
    unfinished: dict[int, int] = field(default_factory=dict[int, int])
    """Tokens drawn so far of candidates that have begun and not ended, by index; after a
    cancellation, those that were drawn in vain."""

    @property
    def cut_tokens(self) -> int:
        """Tokens of candidates that have not ended."""
        return sum(self.unfinished.values())


class TokenScorer(Protocol):
    """Where a version answers: an engine, or one of the servers behind it."""

    async def token_logprobs(
        self,
        version: str,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """Per-token log-probabilities (nats) of given completions of one prompt."""
        ...


Check = Callable[[TokenScorer], Awaitable[None]]
"""Raises if what answers there under a version's name is not that version."""


class Engine(TokenScorer, Protocol):
    """A policy server. `version` is a policy version's name; `v0000` is always the reference.

    Every method raises `EngineUnavailableError` when the engine cannot answer, and
    `UnknownVersionError` for a version that is not loaded.
    """

    @property
    def info(self) -> EngineInfo:
        """What is served; known once `start` has returned."""
        ...

    async def start(self) -> None:
        """Load or connect. Raises `ModelLoadError` naming the model, the cause and the remedy."""
        ...

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        """Draw n completions, one prefill for all. Cancelling the call frees its rows at once.

        Each completion is put into `partial`, if there is one, as soon as it has ended, and by the
        time that a cancelled call raises, how many tokens of the others had been drawn.

        Raises `PromptTooLongError` if prompt and one token do not fit into the context; an answer
        is cut at the context's end with finish reason `length`.
        """
        ...

    def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncIterator[TextDelta]:
        """Draw one completion, piece by piece. Closing the iterator frees its row.

        The first piece tells the prompt's tokens, for whoever gives up before the last one.
        """
        ...

    async def count_prompt_tokens(self, prompt: Conversation) -> int:
        """Tokens of the prompt as the chat template renders it."""
        ...

    async def load_adapter(self, version: str, path: Path, check: Check | None = None) -> None:
        """Load a PEFT directory under a new name. Loading a name twice is an error.

        `check` is asked wherever the version was loaded, before a request can reach it there, and
        again by a server that was started anew. What it raises is raised, and nothing stays loaded.
        """
        ...

    async def drop_adapter(self, version: str) -> None:
        """Stop serving a version; running requests end on it first."""
        ...

    async def loaded_versions(self) -> list[str]:
        """Names that `generate` accepts now, the reference first."""
        ...

    async def health(self) -> bool:
        """Whether the engine answers."""
        ...

    async def close(self) -> None:
        """Release threads, memory and connections; running requests fail."""
        ...
