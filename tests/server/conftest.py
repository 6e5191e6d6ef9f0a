"""Fixtures of the gateway's tests."""

from running_gateway import make_config, rewards_file, run  # noqa: F401
