"""Fixtures of the trainer's tests."""

from tiny_models import tiny_policy_path

__all__ = ["tiny_policy_path"]
