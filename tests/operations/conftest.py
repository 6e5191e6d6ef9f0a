"""Fixtures of the operations pages: gateways and databases."""

from databases import database_url, empty_database_url, open_store_at, postgres
from running_gateway import make_config, rewards_file, run
from served_gateway import serve

__all__ = [
    "database_url",
    "empty_database_url",
    "make_config",
    "open_store_at",
    "postgres",
    "rewards_file",
    "run",
    "serve",
]
