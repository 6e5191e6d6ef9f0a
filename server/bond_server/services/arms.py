"""Which arms an engine can answer by."""

import logging

from bond_core.config import ArmsConfig, SplitConfig
from bond_core.engines import EngineInfo
from bond_core.errors import InvalidRequestError
from bond_core.types import Arm

logger = logging.getLogger(__name__)


def servable_arms(arms: ArmsConfig, info: EngineInfo) -> ArmsConfig:
    """The arms with a split that the engine can answer.

    Without adapters there is no distilled policy; its share of the traffic goes to the others, by
    their shares, or all of it to Best-of-N if they have none.
    """
    if info.adapters or arms.split.distilled == 0:
        return arms
    logger.warning(
        "no request is answered by distilled, whose share of the traffic the other arms get: %s",
        info.no_adapters_because,
    )
    left = arms.split.model_copy(update={"distilled": 0.0})
    if left.reference + left.bon == 0:
        left = SplitConfig(reference=0, bon=1, distilled=0)
    return arms.model_copy(update={"split": left})


def refuse_distilled(info: EngineInfo) -> None:
    """Raise `InvalidRequestError` saying what to add, if the engine serves no adapters."""
    if not info.adapters:
        raise InvalidRequestError(
            f"{Arm.DISTILLED.value} cannot answer here: {info.no_adapters_because}",
            param="model",
            code="adapters_unavailable",
        )
