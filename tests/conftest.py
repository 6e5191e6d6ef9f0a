"""Fixtures that several packages share, once for the whole run: models, and servers over them."""

from tiny_models import tiny_policy_path, tiny_reward_path
from vllm_servers import policy_url, pooling_url

__all__ = ["policy_url", "pooling_url", "tiny_policy_path", "tiny_reward_path"]
