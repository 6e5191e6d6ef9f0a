"""Model ids."""

from fastapi import APIRouter

from bond_server.deps import GatewayDep
from bond_server.gateway import Gateway
from bond_server.schemas.models import ModelList, ModelView
from bond_server.services.models import ModelEntry

router = APIRouter(tags=["models"])

OWNER = "bondserve"


@router.get("/v1/models")
async def list_models(gateway: GatewayDep) -> ModelList:
    """Every id that `model` may name."""
    return ModelList(data=[_view(entry, gateway) for entry in await gateway.models.listing()])


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, gateway: GatewayDep) -> ModelView:
    """One id."""
    return _view(await gateway.models.entry(model_id), gateway)


def _view(entry: ModelEntry, gateway: Gateway) -> ModelView:
    created = gateway.started_at if entry.created is None else entry.created
    return ModelView(
        id=entry.id,
        created=int(created),
        owned_by=OWNER,
        root=gateway.models.name,
        parent=entry.parent,
    )
