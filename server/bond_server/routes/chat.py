"""OpenAI's route: the model id names the arm, or leaves it to the split."""

from fastapi import APIRouter, Request, Response

from bond_server.deps import ContextDep, GatewayDep
from bond_server.routes.answering import respond
from bond_server.schemas.completion import ChatCompletion
from bond_server.schemas.openai import ChatCompletionRequest

router = APIRouter(tags=["answers"])


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def create_chat_completion(
    body: ChatCompletionRequest, request: Request, context: ContextDep, gateway: GatewayDep
) -> Response:
    """Answer a conversation."""
    target = await gateway.models.resolve(body.model)
    return await respond(body, request, context, gateway, target, body.model)
