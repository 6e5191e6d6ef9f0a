"""Model ids: what clients send as `model`, matched whole, because a base name may hold a colon."""

import re
from dataclasses import dataclass

from bond_core.errors import UnknownModelError
from bond_core.types import REFERENCE_VERSION, Arm
from bond_server.services.ask import Target
from bond_server.services.policies import PolicyRegistry

_PINNED = re.compile(r"distilled@v([0-9]{1,9})")
_ARMS = {arm.value: Target(arm) for arm in Arm}


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One listed id."""

    id: str
    parent: str | None = None
    created: float | None = None
    """Unix seconds; None is when the gateway started."""


class Models:
    """The ids of one base model."""

    def __init__(self, name: str, policies: PolicyRegistry, *, adapters: bool = True) -> None:
        """`adapters` is whether the engine serves any: without, `distilled` is not listed."""
        self._name = name
        self._policies = policies
        self._arms = tuple(arm for arm in Arm if adapters or arm is not Arm.DISTILLED)

    @property
    def name(self) -> str:
        """The base model's id, which leaves the arm to the split."""
        return self._name

    def id_of(self, selector: str) -> str:
        """The model id of an arm's selector such as `bon` or `distilled@v0007`."""
        return f"{self._name}:{selector}"

    async def resolve(self, model_id: str) -> Target:
        """What an id means; a pinned version is loaded if need be.

        Raises `UnknownModelError` that lists what exists.
        """
        if model_id == self._name:
            return Target(None)
        target = self._parse(model_id)
        if target is None:
            known = ", ".join(entry.id for entry in await self.listing())
            raise UnknownModelError(f"there is no model {model_id!r}; models served: {known}")
        if target.version is not None:
            await self._policies.require(target.version)
        return target

    async def resolve_for(self, arm: Arm, model_id: str | None) -> Target:
        """What an id means on a route that names its arm itself.

        Raises `UnknownModelError` also for an id of another arm.
        """
        if model_id is None:
            return Target(arm)
        target = await self.resolve(model_id)
        if target.arm not in (None, arm):
            raise UnknownModelError(
                f"this route answers by {arm.value}: send {self._name!r} or "
                f"{self.id_of(arm.value)!r} as model, or none; {model_id!r} is answered by "
                "/v1/chat/completions"
            )
        return Target(arm, target.version)

    async def listing(self) -> list[ModelEntry]:
        """All ids: the base model, the arms, and the pinned versions, oldest first."""
        entries = [
            ModelEntry(self._name),
            *(ModelEntry(self.id_of(arm.value), parent=self._name) for arm in self._arms),
        ]
        if Arm.DISTILLED not in self._arms:
            return entries
        entries.append(ModelEntry(self.id_of(f"distilled@{REFERENCE_VERSION}"), parent=self._name))
        for record in await self._policies.servable():
            parent = record.parent or REFERENCE_VERSION
            entries.append(
                ModelEntry(
                    self.id_of(f"distilled@{record.version}"),
                    self.id_of(f"distilled@{parent}"),
                    record.created_at,
                )
            )
        return entries

    async def entry(self, model_id: str) -> ModelEntry:
        """One listed id; `@v7` finds `@v0007`. Raises `UnknownModelError`."""
        listing = await self.listing()
        target, canonical = self._parse(model_id), model_id
        if target is not None and target.version is not None:
            canonical = self.id_of(f"distilled@{target.version}")
        for entry in listing:
            if entry.id == canonical:
                return entry
        known = ", ".join(entry.id for entry in listing)
        raise UnknownModelError(f"there is no model {model_id!r}; models served: {known}")

    def _parse(self, model_id: str) -> Target | None:
        prefix = f"{self._name}:"
        if not model_id.startswith(prefix):
            return None
        return parse_selector(model_id.removeprefix(prefix))


def parse_selector(selector: str) -> Target | None:
    """`reference`, `bon`, `distilled` or `distilled@vN`, whole; None for anything else."""
    if (target := _ARMS.get(selector)) is not None:
        return target
    pinned = _PINNED.fullmatch(selector)
    if pinned is None:
        return None
    return Target(Arm.DISTILLED, f"v{int(pinned[1]):04d}")
