"""What can go wrong in a call.

BondClientError
├── BondConnectionError         no answer: nothing listens there, or the connection broke
│   └── BondTimeoutError        no answer in time
├── BondProtocolError           an answer, but not one of bondserve's
└── BondAPIError                an error answer; has status, type, param and code
    ├── BondInvalidRequestError     4xx: the request has to change
    │   ├── BondAccessError         401, 403: no valid key, or one that may not do this
    │   └── BondNotFoundError       404: no such model, version or route
    └── BondUnavailableError        5xx: the same request may succeed later
        └── BondRateLimitError      429: over a limit; the same request may succeed later
"""


class BondClientError(Exception):
    """Root of the tree."""


class BondConnectionError(BondClientError):
    """The server could not be reached, or went away before it answered."""

    def __init__(self, url: str, cause: str) -> None:
        super().__init__(
            f"no answer from {url} ({cause}): check the URL, and that the server runs there "
            "(start it with `bond up`)"
        )
        self.url = url


class BondTimeoutError(BondConnectionError):
    """The server did not answer in time."""

    def __init__(self, url: str, timeout_s: float) -> None:
        super().__init__(url, f"timed out after {timeout_s:g} s")
        self.timeout_s = timeout_s


class BondProtocolError(BondClientError):
    """The answer does not have the expected shape: another server, or another version."""


class BondAPIError(BondClientError):
    """The server answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.message = message
        self.status = status
        self.type = type
        """The server's class of error, such as `invalid_request_error`."""
        self.param = param
        """The field of the request that is at fault, if one is."""
        self.code = code
        """A stable name of the cause, such as `model_not_found`."""


class BondInvalidRequestError(BondAPIError):
    """The request is wrong; sending it again will not help."""


class BondAccessError(BondInvalidRequestError):
    """No valid key was sent, or one that may not do this."""


class BondNotFoundError(BondInvalidRequestError):
    """No such model, policy version or route."""


class BondUnavailableError(BondAPIError):
    """The server cannot answer now; the same request may succeed later."""


class BondRateLimitError(BondUnavailableError):
    """The key has used what it may for now, or the server has too much to do."""


def class_for(status: int) -> type[BondAPIError]:
    """The class of an error answer with this status."""
    by_status = {
        401: BondAccessError,
        403: BondAccessError,
        404: BondNotFoundError,
        429: BondRateLimitError,
    }
    if status in by_status:
        return by_status[status]
    return BondUnavailableError if status >= 500 else BondInvalidRequestError
