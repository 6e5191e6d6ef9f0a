"""Publishing: what makes the engine's `policy` and `anchor` those of the learner."""

from dataclasses import dataclass
from typing import Protocol

from bond_core.engines.local import LocalEngine
from bond_trainer.lora import ANCHOR, POLICY, LoraPair


class Publisher(Protocol):
    """Brings the learner's adapters to the engine that rollouts and evaluations ask."""

    @property
    def served(self) -> bool:
        """Whether that engine is servers, which may be away and compute in their own way."""
        ...

    async def publish(self) -> None:
        """From now on the engine's `policy` and `anchor` are the learner's, as they are now.

        A failure leaves what was published before. Raises `PublicationError` if a server refuses
        them or they cannot be written, `EngineUnavailableError` if no server answers.
        """
        ...


@dataclass(frozen=True, slots=True)
class OwnPublisher:
    """Merges the adapters into the weights of an engine in this process."""

    engine: LocalEngine
    pair: LoraPair
    served: bool = False

    async def publish(self) -> None:
        """See `Publisher.publish`; it cannot fail."""
        for name in (POLICY, ANCHOR):
            self.engine.publish(name, self.pair.merged_weights(name))
