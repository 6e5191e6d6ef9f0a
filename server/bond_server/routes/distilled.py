"""The distilled policy: Best-of-N quality in a single sample."""

from fastapi import APIRouter, Request, Response

from bond_core.types import Arm
from bond_server.deps import ContextDep, GatewayDep
from bond_server.routes.answering import respond
from bond_server.schemas.completion import ChatCompletion
from bond_server.schemas.openai import ArmCompletionRequest

router = APIRouter(tags=["answers"])


@router.post("/v1/distilled", response_model=ChatCompletion)
async def create_distilled(
    body: ArmCompletionRequest, request: Request, context: ContextDep, gateway: GatewayDep
) -> Response:
    """Answer from the active policy version, or from the one that the model id pins."""
    target = await gateway.models.resolve_for(Arm.DISTILLED, body.model)
    model = body.model or gateway.models.id_of(Arm.DISTILLED.value)
    return await respond(body, request, context, gateway, target, model)
