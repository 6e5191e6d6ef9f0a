"""Policy versions."""

from fastapi import APIRouter

from bond_core.errors import UnknownModelError
from bond_core.store.records import PolicyRecord
from bond_server.deps import GatewayDep
from bond_server.gateway import Gateway
from bond_server.schemas.models import PolicyList, PolicyView

router = APIRouter(tags=["policies"])


@router.get("/v1/policies")
async def list_policies(gateway: GatewayDep) -> PolicyList:
    """Every version, oldest first; v0000 is the reference."""
    records = await gateway.store.policies.all()
    return PolicyList(
        active=gateway.policies.active, data=[_view(record, gateway) for record in records]
    )


@router.get("/v1/policies/{version}")
async def get_policy(version: str, gateway: GatewayDep) -> PolicyView:
    """One version."""
    record = await gateway.store.policies.get(version)
    if record is not None:
        return _view(record, gateway)
    known = ", ".join(record.version for record in await gateway.store.policies.all())
    missing = UnknownModelError(f"there is no policy version {version!r}; versions: {known}")
    missing.param = "version"
    raise missing


def _view(record: PolicyRecord, gateway: Gateway) -> PolicyView:
    return PolicyView(
        version=record.version,
        state=record.state.value,
        active=record.version == gateway.policies.active,
        loaded=gateway.policies.is_loaded(record.version),
        parent=record.parent,
        step=record.step,
        created_at=record.created_at,
        updated_at=record.updated_at,
        reason=record.reason,
        evaluation=dict(record.evaluation),
    )
