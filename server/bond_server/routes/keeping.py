"""What is kept, as a whole: export, deletion by user, and the account of deletions."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from bond_core.errors import InvalidRequestError
from bond_core.store.deletions import DeletionRecord
from bond_core.store.records import CompletionRecord
from bond_core.store.stored import StoredQuery
from bond_server.deps import GatewayDep
from bond_server.forms.stored import export_line
from bond_server.line_stream import LineStream
from bond_server.routes.stored import metadata_of
from bond_server.schemas.stored import DeletionList, DeletionView

router = APIRouter(tags=["keeping"])


@router.get(
    "/v1/export",
    response_class=Response,
    responses={200: {"content": {LineStream.media_type: {"schema": {"type": "string"}}}}},
)
async def export(
    request: Request,
    gateway: GatewayDep,
    model: str | None = None,
    since: Annotated[float | None, Query(ge=0)] = None,
    until: Annotated[float | None, Query(ge=0)] = None,
    after: str | None = None,
) -> Response:
    """Every row whose content is kept, as lines of JSON, oldest first; `after` goes on behind a
    line that has arrived."""
    query = StoredQuery(
        model=model,
        metadata=metadata_of(request),
        since=since,
        until=until,
        only_stored=False,
    )
    pages = gateway.stored.export(query, after)
    first = await anext(pages)  # so that an error is an answer of its own

    async def lines() -> AsyncGenerator[str]:
        yield _lines(first)
        async for page in pages:
            yield _lines(page)

    return LineStream(lines(), gateway.config.server.send_timeout_s)


@router.delete("/v1/users/{user:path}/completions")
async def delete_user(user: str, gateway: GatewayDep) -> DeletionView:
    """Delete every row of a user, and say which versions may have learned from them."""
    if not user:
        raise InvalidRequestError("name a user between /v1/users/ and /completions", param="user")
    return _deletion(await gateway.stored.delete_user(user))


@router.get("/v1/deletions")
async def list_deletions(
    gateway: GatewayDep,
    user: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> DeletionList:
    """The latest deletions, or those of one user."""
    found = await gateway.stored.deletions(limit, user)
    return DeletionList(data=[_deletion(record) for record in found])


def _lines(page: list[CompletionRecord]) -> str:
    return "".join(export_line(record) + "\n" for record in page)


def _deletion(record: DeletionRecord) -> DeletionView:
    return DeletionView(
        id=record.id,
        created_at=record.created_at,
        subject=record.subject,
        subject_hash=record.subject_hash,
        num_rows=record.num_rows,
        num_learnable=record.num_learnable,
        versions=list(record.versions),
    )
