"""A sequence reward model on a vLLM pooling server."""

from bond_core.rewards.pooling.scorer import PoolingScorer

__all__ = ["PoolingScorer"]
