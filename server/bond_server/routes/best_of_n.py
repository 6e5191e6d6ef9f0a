"""Best-of-N of the reference policy."""

from fastapi import APIRouter, Request, Response

from bond_core.types import Arm
from bond_server.deps import ContextDep, GatewayDep
from bond_server.routes.answering import respond
from bond_server.schemas.completion import ChatCompletion
from bond_server.schemas.openai import ArmCompletionRequest

router = APIRouter(tags=["answers"])


@router.post("/v1/best-of-n", response_model=ChatCompletion)
async def create_best_of_n(
    body: ArmCompletionRequest, request: Request, context: ContextDep, gateway: GatewayDep
) -> Response:
    """Draw candidates from the reference, score them, answer with the best."""
    target = await gateway.models.resolve_for(Arm.BON, body.model)
    model = body.model or gateway.models.id_of(Arm.BON.value)
    return await respond(body, request, context, gateway, target, model)
