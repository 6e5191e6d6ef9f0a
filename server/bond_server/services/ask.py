"""A request as the services see it, and the plan that answers it."""

from dataclasses import dataclass, field
from typing import Literal

from bond_core.config import ArmsConfig
from bond_core.errors import InvalidRequestError
from bond_core.store.records import Origin
from bond_core.types import REFERENCE_VERSION, Arm, Message, SamplingParams
from bond_server.context import RequestContext
from bond_server.services.assignment import assign
from bond_server.services.idempotency import Claim

StrategyName = Literal["single", "best_of_n"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a model id means."""

    arm: Arm | None
    """None leaves the arm to the configured split."""
    version: str | None = None
    """A pinned policy version; None means the arm's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One validated request for answers."""

    context: RequestContext
    requested_model: str
    target: Target
    messages: tuple[Message, ...]
    params: SamplingParams
    unit: str
    n: int | None = None
    best_of: int | None = None
    may_store: bool | None = None
    """The body's `store`; None leaves it to the deployment."""
    origin: Origin = field(default_factory=Origin)
    claim: Claim | None = None
    """The request's hold on its idempotency key, if it has one."""
    deadline_s: float | None = None
    """Seconds from arrival at which the best so far is returned; None leaves it to the
    deployment."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Arm, policy version and strategy of one request."""

    arm: Arm
    version: str
    strategy: StrategyName
    n: int
    best_of: int
    experiment: str | None = None
    """Whose split chose the arm; None where the request said something of arm or N itself."""

    @property
    def streams(self) -> bool:
        """Whether its answer can be sent as it is drawn: one sample, and nothing to choose."""
        return self.strategy == "single" and self.n == 1


def make_plan(ask: Ask, arms: ArmsConfig, active: str) -> Plan:
    """Decide how a request is answered; `active` is what `distilled` means now.

    Best-of-N of the reference is the arm `bon` by whatever id it was asked for. Raises
    `InvalidRequestError` for numbers that contradict each other, alike for all arms that could
    answer, so that a request does not fail or pass by the luck of its assignment.
    """
    arm = ask.target.arm or assign(ask.unit, arms.experiment, arms.split)
    n = ask.n or 1
    if ask.best_of is not None and ask.best_of < n:
        raise InvalidRequestError(
            f"best_of ({ask.best_of}) must not be less than n ({n})", param="best_of"
        )
    if max(ask.best_of or 1, n) > arms.max_best_of:
        param = "best_of" if ask.best_of is not None else "n"
        raise InvalidRequestError(
            f"{param} is {max(ask.best_of or 1, n)}; this deployment draws at most "
            f"{arms.max_best_of} candidates per request (arms.max_best_of)",
            param=param,
        )
    _refuse_identical_draws(ask, arms, n)
    if arm is Arm.REFERENCE and ask.best_of is not None and ask.best_of > 1:
        arm = Arm.BON
    version = ask.target.version or (active if arm is Arm.DISTILLED else REFERENCE_VERSION)
    best_of = ask.best_of or (max(n, arms.best_of) if arm is Arm.BON else n)
    selects = best_of > 1 and (arm is Arm.BON or ask.best_of is not None)
    assigned = ask.target.arm is None and ask.best_of is None
    return Plan(
        arm=arm,
        version=version,
        strategy="best_of_n" if selects else "single",
        n=n,
        best_of=best_of,
        experiment=arms.experiment if assigned else None,
    )


def _refuse_identical_draws(ask: Ask, arms: ArmsConfig, n: int) -> None:
    if ask.params.temperature > 0:
        return
    may_be_bon = ask.target.arm is Arm.BON or (ask.target.arm is None and arms.split.bon > 0)
    default = max(n, arms.best_of) if may_be_bon else n
    draws = ask.best_of or default
    if draws > 1:
        raise InvalidRequestError(
            f"at temperature 0 all {draws} candidates would be the same answer: send a "
            "temperature above 0, or best_of 1",
            param="temperature",
        )
