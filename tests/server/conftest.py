"""Fixtures of the gateway's tests."""

from databases import database_url, open_store_at, postgres, store  # noqa: F401
from openai_package import client, served  # noqa: F401
from running_gateway import make_config, rewards_file, run  # noqa: F401
from served_gateway import serve  # noqa: F401
