"""What a policy version says of itself."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ProbeCase(BaseModel):
    """Given tokens and their summed log-probability (nats, temperature 1) under three policies.

    The trainer picks the answers on which the three differ most, so that few cases suffice to
    tell which policy is being served.
    """

    # A NaN would make every comparison of the probe false, and so let anything pass.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt_token_ids: list[int] = Field(min_length=1)
    completion_token_ids: list[int] = Field(min_length=1)
    this: float
    """Under the version that the manifest describes."""
    parent: float
    """Under the incumbent, the manifest's `parent`: the newest challenger that waited when it was
    made, else the live version. What a stale load would serve."""
    reference: float
    """Under the reference: what a load without effect would serve."""


class Manifest(BaseModel):
    """`manifest.json` of an adapter directory; written last, so that its absence means half
    written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    version: str = Field(pattern=r"^v\d{4,}$")
    parent: str
    """The incumbent that it was compared with."""
    base_model: str
    base_revision: str = ""
    """Of the base model's folder: `fingerprints.model_digest`, over configuration and weights. An
    engine that knows another of its own refuses the adapter."""
    tokenizer_sha256: str
    """Of the tokenizer and its chat template; an engine with another refuses the adapter."""
    step: int
    created_at: float
    """Unix seconds."""
    objective: dict[str, Any]
    """The trainer's settings."""
    sampling: dict[str, Any]
    """The standard distribution that it was trained for."""
    log_window: dict[str, Any] = {}
    """Which rows of the log the learner had seen."""
    evaluation: dict[str, Any] = {}
    probe: list[ProbeCase]
    weights_sha256: str = ""
    """Of the weights file; filled in when the directory is written."""
