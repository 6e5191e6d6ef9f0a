"""Every error that crosses a package boundary.

    BondError
    ├── InvalidRequestError         the caller's mistake; `param` names the field
    │   ├── PromptTooLongError
    │   ├── UnknownModelError       no such model id or policy version
    │   └── UnknownCompletionError  no completion of that id is stored
    ├── ConfigError                 a configuration file, flag or variable is wrong
    ├── AdapterError                an adapter directory is incomplete, altered or does not fit
    │   └── ProbeError              loaded, but what is served is not this version
    ├── UnknownVersionError         the engine does not hold this version
    ├── QuotingError                its message quotes another program; `loggable` does not
    │   ├── ModelLoadError          a model or reward model cannot be loaded
    │   ├── EngineUnavailableError  the engine cannot answer now
    │   └── ScoringError            a scorer failed, or returned something that is not a score
    │       └── ScorerUnavailableError  its server is away, refuses us or answers nonsense
    ├── DeadlineError               no answer had been drawn when the request's deadline came
    ├── PolicyStateError            a policy version may not change in this way
    ├── StoreUnavailableError       the store cannot commit now
    └── OverloadedError             too much to do; `retry_after_s` says when to come back

Each message says what is wrong and what to do. The gateway maps classes to HTTP in one table.
"""


class BondError(Exception):
    """Root of the tree."""

    @property
    def message(self) -> str:
        """The text for people."""
        return str(self)

    @property
    def loggable(self) -> str:
        """The text for a log, which never holds what somebody wrote or was answered."""
        return self.message


class QuotingError(BondError):
    """The message quotes what another program said, which may quote a conversation.

    `loggable` is the message without that.
    """

    def __init__(self, message: str, loggable: str | None = None) -> None:
        super().__init__(message)
        self._loggable = loggable

    @property
    def loggable(self) -> str:
        """The text for a log."""
        return self.message if self._loggable is None else self._loggable


class InvalidRequestError(BondError):
    """The request is wrong; `param` is the field that is at fault, if one is."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for an answer."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="messages", code="context_length_exceeded")


class UnknownModelError(InvalidRequestError):
    """No model id or policy version of that name is served."""

    def __init__(self, message: str) -> None:
        super().__init__(message, param="model", code="model_not_found")


class UnknownCompletionError(InvalidRequestError):
    """No completion of that id is stored."""

    def __init__(self, completion_id: str) -> None:
        super().__init__(
            f"there is no stored completion {completion_id!r}: it never was, its request said "
            "store: false, or it was deleted",
            param="completion_id",
            code="completion_not_found",
        )


class ConfigError(BondError):
    """The configuration is wrong; the message names the key and the nearest valid one."""


class ModelLoadError(QuotingError):
    """A model or reward model cannot be loaded: which, why, what to do; `loggable` is without what
    its server said."""


class AdapterError(BondError):
    """An adapter directory is half written, altered or made for another model."""


class ProbeError(AdapterError):
    """What the engine serves under a version's name is not that version."""


class UnknownVersionError(BondError):
    """The engine does not hold this policy version."""


class EngineUnavailableError(QuotingError):
    """The engine cannot answer now; `loggable` is without what its server said."""


class DeadlineError(BondError):
    """No answer had been drawn when the request's deadline came.

    `prompt_token_ids` and `cut_tokens` are what was spent until then, as far as the engine told:
    the prompt, and the tokens of answers that had begun.
    """

    def __init__(
        self, message: str, prompt_token_ids: tuple[int, ...] = (), cut_tokens: int = 0
    ) -> None:
        super().__init__(message)
        self.prompt_token_ids = prompt_token_ids
        self.cut_tokens = cut_tokens


class ScoringError(QuotingError):
    """The scorer failed or returned something that is not a finite number; `loggable` is without
    what the scorer itself said."""


class ScorerUnavailableError(ScoringError):
    """A scorer's server is away, refuses us or answers nonsense: no conversation is at fault, and
    asking for each by itself would not help."""


class PolicyStateError(BondError):
    """A policy version does not exist, exists already, or may not go to that state."""


class StoreUnavailableError(BondError):
    """The store cannot commit now."""


class OverloadedError(BondError):
    """There is more to do than can be done now; the request was not begun."""

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.code = code
        """Which bound was met."""
        self.retry_after_s = retry_after_s
