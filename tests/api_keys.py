"""Keys for gateways under test."""

from collections.abc import Collection
from typing import Any

from running_gateway import Running

from bond_core.store import ApiKey, Scope


async def make_key(
    running: Running, scopes: Collection[str], **settings: Any
) -> tuple[ApiKey, str]:
    """A key of these scopes that the gateway knows at once."""
    wanted = {Scope(scope) for scope in scopes}
    made = await running.gateway.store.access.create("test", wanted, **settings)
    await running.gateway.gatekeeper.keyring.refresh()
    return made


def bearer(secret: str) -> dict[str, str]:
    """The header that carries a key."""
    return {"authorization": f"Bearer {secret}"}
