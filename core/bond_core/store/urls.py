"""The URL of a store, checked; its errors never quote it, for it may have a password."""

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from bond_core.errors import ConfigError

POSTGRES_PARAMETERS = frozenset(
    {
        "command_timeout",
        "gsslib",
        "host",
        "krbsrvname",
        "passfile",
        "port",
        "prepared_statement_cache_size",
        "service",
        "servicefile",
        "ssl",
        "sslmode",
        "target_session_attrs",
    }
)
"""What asyncpg and SQLAlchemy's dialect of it take behind the `?` of a URL."""


_DRIVERS_OWN = frozenset({"command_timeout", "prepared_statement_cache_size"})


def parse_url(url: str) -> sa.URL:
    """The parts of a store's URL. Raises `ConfigError`."""
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError):  # the latter for a port that is no number
        raise ConfigError(
            "store.url is not a database URL: write postgresql://USER:PASSWORD@HOST:5432/DATABASE, "
            "with @, : and / in a password as %40, %3A and %2F, or sqlite:////whole/path/of/bond.db"
        ) from None


def require_known_parameters(url: sa.URL) -> None:
    """Raise `ConfigError` for a parameter of a PostgreSQL URL that would fail at the connection."""
    unknown = sorted(set(url.query) - POSTGRES_PARAMETERS)
    if unknown:
        raise ConfigError(
            f"store.url has {', '.join(unknown)} behind its ?, which the driver does not know: "
            f"leave it out; known are {', '.join(sorted(POSTGRES_PARAMETERS))}"
        )


def plain_url(url: sa.URL) -> sa.URL:
    """The URL as PostgreSQL's own programs take it, without its password."""
    query = {key: value for key, value in url.query.items() if key not in _DRIVERS_OWN}
    if "ssl" in query:  # asyncpg's name for what libpq calls sslmode
        query["sslmode"] = query.pop("ssl")
    return sa.URL.create("postgresql", url.username, None, url.host, url.port, url.database, query)
