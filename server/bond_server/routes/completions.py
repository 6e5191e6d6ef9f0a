"""OpenAI's older route: raw text that the model continues, without its chat template."""

from fastapi import APIRouter, Request, Response

from bond_server.deps import ContextDep, GatewayDep
from bond_server.routes.answering import respond
from bond_server.schemas.completion import TextCompletion
from bond_server.schemas.openai import TextCompletionRequest

router = APIRouter(tags=["answers"])


@router.post("/v1/completions", response_model=TextCompletion)
async def create_completion(
    body: TextCompletionRequest, request: Request, context: ContextDep, gateway: GatewayDep
) -> Response:
    """Continue a text."""
    target = await gateway.models.resolve(body.model)
    return await respond(body, request, context, gateway, target, body.model)
