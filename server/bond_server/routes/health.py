"""Is the process up, and can it answer?"""

from fastapi import APIRouter

from bond_core.errors import StoreUnavailableError
from bond_server.deps import GatewayDep
from bond_server.errors import NotReadyError
from bond_server.schemas.models import Health, Readiness

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Health:
    """The process is up."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(gateway: GatewayDep) -> Readiness:
    """Engine, scorers and store work; a 503 names the part that does not.

    Scorers have no health of their own: they are open since the start, and a failure to score is
    seen in the answers.
    """
    broken: list[str] = []
    if not await gateway.engine.health():
        broken.append("engine: it does not answer")
    try:
        await gateway.store.ping()
    except StoreUnavailableError as error:
        broken.append(f"store: {error.message}")
    if broken:
        raise NotReadyError("not ready: " + "; ".join(broken))
    return Readiness(active=gateway.policies.active)
