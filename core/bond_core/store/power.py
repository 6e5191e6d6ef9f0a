"""Whether a PostgreSQL server can keep what `durability: power` promises."""

import sqlalchemy as sa
from sqlalchemy import Connection

from bond_core.errors import ConfigError

_WHY = {
    "fsync": "what it commits is lost when its machine loses power",
    "full_page_writes": "a page that was half written when its machine lost power is lost",
    "synchronous_commit": "it says that rows are committed before they are on the disk",
}
"""Settings that are on by default, and what the server does without each."""


def require_power(connection: Connection) -> None:
    """Raise `ConfigError` if the server acknowledges what a loss of power takes away.

    SQLite is asked for what it has to do; a server has settings of its own. `synchronous_commit`
    is set by us and looked at all the same, because a pool of connections may drop what we set.
    """
    if connection.dialect.name != "postgresql":
        return
    for setting, why in _WHY.items():
        if connection.execute(sa.text(f"SHOW {setting}")).scalar_one() == "off":
            raise ConfigError(
                f"store.durability is power, and the PostgreSQL server has {setting} = off: {why}. "
                f"Turn it on (ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf();), or set "
                "store.durability to process"
            )
