"""Prompts as the servers' chat template renders them."""

from bond_core.engines.vllm.connection import RefusedError
from bond_core.engines.vllm.fleet import Fleet, affinity_of
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import InvalidRequestError
from bond_core.types import Conversation


def refuse_empty(prompt: Conversation) -> None:
    """Raise `InvalidRequestError` for a conversation without messages."""
    if not prompt:
        raise InvalidRequestError("messages is empty: send at least one message", param="messages")


async def prompt_tokens(fleet: Fleet, model: str, prompt: Conversation) -> list[int]:
    """Token ids up to where the answer begins.

    Raises `InvalidRequestError` if the template refuses the conversation.
    """
    refuse_empty(prompt)
    body = {
        "model": model,
        "messages": [message.as_dict() for message in prompt],
        "add_generation_prompt": True,
    }

    async def tokenize(replica: Replica) -> list[int]:
        answer = await replica.connection.post("/tokenize", body)
        return [int(token) for token in answer["tokens"]]

    try:
        return await fleet.call(affinity_of(prompt), 0, tokenize)
    except RefusedError as error:
        raise InvalidRequestError(
            f"the model's chat template refuses these messages: {error}", param="messages"
        ) from error
