"""OpenAI's older route: raw text that the model continues, without its chat template."""

from fastapi import APIRouter, Request, Response

from bond_server.deps import ContextDep, GatewayDep
from bond_server.routes.answering import full_ask, respond
from bond_server.routes.prompts import respond_to_each
from bond_server.schemas.completion import TextCompletion
from bond_server.schemas.openai import TextCompletionRequest

router = APIRouter(tags=["answers"])


@router.post("/v1/completions", response_model=TextCompletion)
async def create_completion(
    body: TextCompletionRequest, request: Request, context: ContextDep, gateway: GatewayDep
) -> Response:
    """Continue a text, or several."""
    target = await gateway.models.resolve(body.model)
    if len(body.prompt) > 1:
        ask = await full_ask(body, request, context, gateway, target, body.model)
        return await respond_to_each(body, request, gateway, ask)
    return await respond(body, request, context, gateway, target, body.model)
