"""Which software samples, and from which model."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bond_core.config.base import Section


class ModelConfig(Section):
    """The base model, whose distribution at the configured sampling is the reference policy."""

    path: Path
    """Folder in Hugging Face format with weights, tokenizer and chat template."""
    name: str = Field(default="", pattern=r"^[^\s]*$")
    """Model id in the API; by default the folder's name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights in memory. float32 keeps log-probabilities comparable on a CPU."""

    @property
    def served_name(self) -> str:
        """The id that `/v1/models` lists and clients send."""
        return self.name or self.path.resolve().name


class LocalEngineConfig(Section):
    """The embedded engine: transformers in this process, for machines without a GPU."""

    type: Literal["local"] = "local"
    """Names this engine."""
    device: str = "cpu"
    """Torch device."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of the process. 1 leaves a core to the trainer on a two-core machine."""
    max_rows: int = Field(default=64, ge=1)
    """Completions decoded at once; more wait in order of arrival."""
    max_context_tokens: int = Field(default=2048, ge=8)
    """Upper bound on prompt plus completion; the model's own limit applies if smaller."""
    max_adapters: int = Field(default=4, ge=2)
    """Versions resident at once beside the reference; each costs a merged copy of the weights
    that its adapter touches."""


class FakeEngineConfig(Section):
    """A deterministic engine without a model, for tests and client development."""

    type: Literal["fake"] = "fake"
    """Names this engine."""
    delay_s: float = Field(default=0.0, ge=0)
    """Time that one completion takes."""
    capacity: int = Field(default=256, ge=1)
    """Completions in progress at once; more wait."""


EngineConfig = Annotated[LocalEngineConfig | FakeEngineConfig, Field(discriminator="type")]
