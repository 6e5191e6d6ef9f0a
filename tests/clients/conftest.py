"""Fixtures of the clients' tests."""

from tiny_models import tiny_policy_path, tiny_reward_path  # noqa: F401
