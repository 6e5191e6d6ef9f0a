"""Python client of bondserve: a thin, typed layer over its HTTP interface.

    from bond_client import Client

    with Client("http://127.0.0.1:8080") as client:
        answer = client.chat("How do I return a lamp?", model="demo")
        print(answer.text, answer.bond.arm, answer.bond.version)

`Client` and `AsyncClient` share one sans-I/O core: `requests` builds requests and parses answers,
the clients only send them.
"""

from bond_client.answers import (
    BondAnswer,
    Candidate,
    ChatCompletion,
    Choice,
    ComparedArm,
    Comparison,
    Timings,
    Usage,
)
from bond_client.client import AsyncClient, Client
from bond_client.errors import (
    BondAccessError,
    BondAPIError,
    BondClientError,
    BondConnectionError,
    BondInvalidRequestError,
    BondNotFoundError,
    BondProtocolError,
    BondRateLimitError,
    BondTimeoutError,
    BondUnavailableError,
)
from bond_client.state import (
    ArmTraffic,
    Evaluation,
    Health,
    Model,
    Policies,
    Policy,
    Training,
    TrainingRun,
)

__all__ = [
    "ArmTraffic",
    "AsyncClient",
    "BondAPIError",
    "BondAccessError",
    "BondAnswer",
    "BondClientError",
    "BondConnectionError",
    "BondInvalidRequestError",
    "BondNotFoundError",
    "BondProtocolError",
    "BondRateLimitError",
    "BondTimeoutError",
    "BondUnavailableError",
    "Candidate",
    "ChatCompletion",
    "Choice",
    "Client",
    "ComparedArm",
    "Comparison",
    "Evaluation",
    "Health",
    "Model",
    "Policies",
    "Policy",
    "Timings",
    "Training",
    "TrainingRun",
    "Usage",
]
