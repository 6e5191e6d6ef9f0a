"""Log-probabilities of given tokens: what may be asked for, and the view of one replica."""

from collections.abc import Sequence

from bond_core.engines.limits import check_scoring_temperature
from bond_core.engines.vllm.adapters import LOAD_TIMEOUT_S, Adapter
from bond_core.engines.vllm.connection import AwayError, RefusedError
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import AdapterError, InvalidRequestError

SCORED_AT_ONCE = 32
"""Sequences in one scoring request."""
INTERNAL_ERROR = 500
FULL_VOCABULARY_ENTRIES = 500_000
"""Log-probabilities in the answer to one scoring request at a temperature other than 1: reading
them takes about 2 s, in which the event loop answers nobody else."""


def scorable(
    prompt_token_ids: Sequence[int],
    completions: Sequence[Sequence[int]],
    temperature: float,
    *,
    max_context_tokens: int,
    vocab_size: int,
) -> list[list[int]]:
    """Prompt and completion together, for each completion that has tokens.

    Raises `InvalidRequestError` for what vLLM cannot score: it has to draw one token more.
    """
    check_scoring_temperature(temperature)
    if not prompt_token_ids:
        raise InvalidRequestError("the prompt has no tokens", param="prompt_token_ids")
    sequences = [[*prompt_token_ids, *tokens] for tokens in completions if tokens]
    longest = max(map(len, sequences), default=0)
    if longest > max_context_tokens - 1:
        raise InvalidRequestError(
            f"prompt and completion have {longest} tokens together, and vLLM scores at most "
            f"{max_context_tokens - 1} (its context less one)"
        )
    if any(not 0 <= token < vocab_size for tokens in sequences for token in tokens):
        raise InvalidRequestError(
            f"a token id is outside of the vocabulary (0 to {vocab_size - 1})"
        )
    at_once = sum(map(len, sequences[:SCORED_AT_ONCE]))
    entries = at_once * min(vocab_size, 1 << 20)
    if temperature != 1 and entries > FULL_VOCABULARY_ENTRIES:
        raise InvalidRequestError(
            f"at temperature {temperature:g} vLLM would have to send {entries:,} "
            f"log-probabilities, and at most {FULL_VOCABULARY_ENTRIES:,} are asked for: score "
            "fewer tokens at once, or at temperature 1",
            param="temperature",
        )
    return sequences


class ScoringAt:
    """One replica as the check of one adapter sees it."""

    def __init__(self, replica: Replica, adapter: Adapter) -> None:
        self._replica = replica
        self._name = adapter.name

    async def token_logprobs(
        self,
        version: str,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """See `TokenScorer.token_logprobs`; `version` is the adapter's own."""
        sequences = [[*prompt_token_ids, *tokens] for tokens in completions]
        try:
            return await self._replica.token_logprobs(
                self._name,
                sequences,
                len(prompt_token_ids),
                temperature,
                priority=0,
                timeout_s=LOAD_TIMEOUT_S,  # a server that hangs holds every other load up
            )
        except RefusedError as error:
            raise AdapterError(
                f"vLLM at {self._replica.url} refuses to score {version}: {error}"
            ) from error
        except AwayError as error:
            if error.status != INTERNAL_ERROR:
                raise
            await self._replica.is_healthy(LOAD_TIMEOUT_S)  # else it is the server that failed
            raise AdapterError(
                f"vLLM at {self._replica.url} fails to score {version}, as it does where "
                f"log-probabilities are not numbers: {error}"
            ) from error
