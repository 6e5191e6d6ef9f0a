"""The dashboard's way in: a key is exchanged for a cookie."""

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from bond_core.errors import InvalidRequestError
from bond_core.store import ALL_SCOPES, ApiKey
from bond_core.store.access_records import Session
from bond_server.access.failures import InvalidKeyError
from bond_server.access.gatekeeper import Credentials
from bond_server.access.sessions import COOKIE, csrf_token_of
from bond_server.deps import GatewayDep
from bond_server.schemas.session import SessionView

router = APIRouter(tags=["session"])


@router.post("/v1/session", status_code=HTTPStatus.CREATED)
async def begin_session(request: Request, response: Response, gateway: GatewayDep) -> SessionView:
    """Exchange the key in `Authorization` for a cookie that scripts cannot read."""
    credentials = Credentials.of(request.scope["headers"])
    keyring = gateway.gatekeeper.keyring
    if not keyring.has_keys:
        raise InvalidRequestError(
            "this gateway has no keys, so there is nothing to exchange: it answers everyone",
            code="no_keys",
        )
    if credentials.key is None:
        raise InvalidKeyError("send the key to exchange as the header Authorization: Bearer …")
    key = keyring.key_of(credentials.key)
    lasts_s = gateway.config.access.session_s
    session, token = await gateway.store.access.begin_session(key.id, lasts_s)
    await keyring.refresh()
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(lasts_s),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return _view(key, session, token)


@router.get("/v1/session")
async def get_session(request: Request, gateway: GatewayDep) -> SessionView:
    """Who asks; after a page was loaded again, the token for changes by cookie."""
    gatekeeper = gateway.gatekeeper
    if not gatekeeper.keyring.has_keys:
        return SessionView(
            open=True,
            key=None,
            name=None,
            scopes=sorted(ALL_SCOPES),
            expires_at=None,
            csrf_token=None,
        )
    credentials = Credentials.of(request.scope["headers"])
    key, session = gatekeeper.identify(request.method, credentials)
    return _view(key, session, credentials.session_token)


@router.delete("/v1/session", status_code=HTTPStatus.NO_CONTENT)
async def end_session(request: Request, gateway: GatewayDep) -> Response:
    """End the cookie's session, on every gateway; without one there is nothing to end."""
    response = Response(status_code=HTTPStatus.NO_CONTENT)
    gatekeeper = gateway.gatekeeper
    if gatekeeper.keyring.has_keys:
        credentials = Credentials.of(request.scope["headers"])
        _, session = gatekeeper.identify(request.method, credentials)
        if session is not None:
            await gateway.store.access.end_session(session.secret_sha256)
            await gatekeeper.keyring.refresh()
    response.delete_cookie(
        COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


def _view(key: ApiKey, session: Session | None, token: str | None) -> SessionView:
    by_cookie = None if session is None else token
    return SessionView(
        open=False,
        key=key.id,
        name=key.name,
        scopes=sorted(key.scopes),
        expires_at=session.expires_at if session is not None else None,
        csrf_token=None if by_cookie is None else csrf_token_of(by_cookie),
    )
