"""KL of the learner's policy to the reference."""

from collections.abc import Sequence

from bond_core.types import Generation
from bond_trainer.draws import FloatArray
from bond_trainer.laws_along import laws_along
from bond_trainer.lora import AdapterName, LoraPair


def kl_to_reference(
    pair: LoraPair, name: AdapterName, generations: Sequence[Generation], temperature: float
) -> FloatArray:
    """KL to the reference in nats per sampled answer, `(prompts, samples)`."""
    found = laws_along(lambda: pair.using(name), lambda: pair.using(None), generations, temperature)
    return found.kl_PS
