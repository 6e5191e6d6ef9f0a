"""Stored completions, in OpenAI's form."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from bond_core.errors import InvalidRequestError
from bond_core.store import Scope
from bond_core.store.stored import StoredQuery
from bond_server.context import RequestContext
from bond_server.deps import ContextDep, GatewayDep
from bond_server.forms.stored import stored_messages, stored_view
from bond_server.schemas.stored import (
    MetadataUpdate,
    StoredCompletion,
    StoredDeleted,
    StoredList,
    StoredMessageList,
)

router = APIRouter(tags=["stored completions"])

Order = Literal["asc", "desc"]
MOST = 100
Limit = Annotated[int, Query(ge=1, le=MOST)]


@router.get("/v1/chat/completions")
async def list_completions(
    request: Request,
    context: ContextDep,
    gateway: GatewayDep,
    model: str | None = None,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> StoredList:
    """Stored completions, filtered by `model` and by `metadata[KEY]=VALUE`, a page at a time."""
    query = StoredQuery(
        model=model,
        key=_whose(context, Scope.READ),
        metadata=metadata_of(request),
        descending=order == "desc",
        limit=limit,
    )
    records, has_more = await gateway.stored.page(query, after)
    data = [stored_view(record) for record in records]
    return StoredList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=has_more,
    )


@router.get("/v1/chat/completions/{completion_id}")
async def get_completion(
    completion_id: str, context: ContextDep, gateway: GatewayDep
) -> StoredCompletion:
    """One stored completion."""
    return stored_view(await gateway.stored.get(completion_id, _whose(context, Scope.READ)))


@router.get("/v1/chat/completions/{completion_id}/messages")
async def get_messages(
    completion_id: str,
    context: ContextDep,
    gateway: GatewayDep,
    after: str | None = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> StoredMessageList:
    """What was asked in a stored completion."""
    record = await gateway.stored.get(completion_id, _whose(context, Scope.READ))
    messages = stored_messages(record)
    if order == "desc":
        messages.reverse()
    if after is not None:
        ids = [message.id for message in messages]
        if after not in ids:
            raise InvalidRequestError(f"there is no message {after!r}", param="after")
        messages = messages[ids.index(after) + 1 :]
    data = messages[:limit]
    return StoredMessageList(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=len(messages) > limit,
    )


@router.post("/v1/chat/completions/{completion_id}")
async def update_completion(
    completion_id: str, body: MetadataUpdate, context: ContextDep, gateway: GatewayDep
) -> StoredCompletion:
    """Replace a stored completion's metadata."""
    # who is shown another's completion has to be one who may read it
    key = _whose(context, Scope.ADMIN) or _whose(context, Scope.READ)
    return stored_view(await gateway.stored.set_metadata(completion_id, body.metadata or {}, key))


@router.delete("/v1/chat/completions/{completion_id}")
async def delete_completion(
    completion_id: str, context: ContextDep, gateway: GatewayDep
) -> StoredDeleted:
    """Delete a stored completion, its row included."""
    await gateway.stored.delete(completion_id, _whose(context, Scope.ADMIN))
    return StoredDeleted(id=completion_id)


def _whose(context: RequestContext, of_all: Scope) -> str | None:
    """The key whose completions a caller may see or change: its own, or None for everyone's with
    the scope `of_all`."""
    return None if of_all in context.caller.scopes else context.caller.key_id


def metadata_of(request: Request) -> dict[str, str]:
    """The `metadata[KEY]=VALUE` pairs of a query. Raises `InvalidRequestError` for other names
    that no parameter has."""
    pairs: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.startswith("metadata[") and name.endswith("]") and len(name) > len("metadata[]"):
            pairs[name.removeprefix("metadata[")[:-1]] = value
        elif name.startswith("metadata"):
            raise InvalidRequestError(
                f"metadata is filtered by metadata[KEY]=VALUE, not by {name}", param="metadata"
            )
    return pairs
