"""Fixtures of the trainer's tests."""

from tiny_models import tiny_policy_path
from vllm_servers import policy_url

__all__ = ["policy_url", "tiny_policy_path"]
