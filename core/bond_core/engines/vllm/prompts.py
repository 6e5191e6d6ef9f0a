"""Prompts as the servers' chat template renders them."""

from typing import Any

from bond_core.engines.vllm.connection import RefusedError
from bond_core.engines.vllm.fleet import Fleet, affinity_of
from bond_core.engines.vllm.replica import Replica
from bond_core.errors import EngineUnavailableError, InvalidRequestError
from bond_core.types import Conversation, raw_prompt

ABOUT_THE_MESSAGES = (400, 422)


def refuse_empty(prompt: Conversation) -> None:
    """Raise `InvalidRequestError` for a conversation without messages."""
    if not prompt:
        raise InvalidRequestError("messages is empty: send at least one message", param="messages")


async def prompt_tokens(fleet: Fleet, model: str, prompt: Conversation) -> list[int]:
    """Token ids up to where the answer begins.

    Raises `InvalidRequestError` if the template refuses the conversation.
    """
    refuse_empty(prompt)
    text = raw_prompt(prompt)
    body: dict[str, Any] = {"model": model}
    if text is not None:
        body |= {"prompt": text, "add_special_tokens": True}
    else:
        body |= {
            "messages": [message.as_dict() for message in prompt],
            "add_generation_prompt": True,
        }

    async def tokenize(replica: Replica) -> list[int]:
        answer = await replica.connection.post("/tokenize", body)
        try:
            return [int(token) for token in answer["tokens"]]
        except (KeyError, TypeError, ValueError) as error:
            raise EngineUnavailableError(
                f"{replica.url}/tokenize does not answer with tokens: let that route through"
            ) from error

    try:
        return await fleet.call(affinity_of(prompt), 0, tokenize)
    except RefusedError as error:
        if error.status not in ABOUT_THE_MESSAGES:
            raise EngineUnavailableError(
                f"vLLM does not render messages at /tokenize ({error.status}: {error}): let that "
                "route through",
                f"vLLM does not render messages at /tokenize (status {error.status})",
            ) from error
        raise InvalidRequestError(
            f"the model's chat template refuses these messages: {error}", param="messages"
        ) from error
