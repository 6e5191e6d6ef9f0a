"""Fixtures of the core's tests."""

from databases import (  # noqa: F401
    database_url,
    empty_database_url,
    open_store_at,
    postgres,
    store,
)
from failing_servers import fleet, servers  # noqa: F401
