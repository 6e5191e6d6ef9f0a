"""Which software samples, and from which model."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from bond_core.config.base import Section, http_url
from bond_core.errors import ConfigError


class ModelConfig(Section):
    """The base model, whose distribution at the configured sampling is the reference policy."""

    path: Path | None = None
    """Folder in Hugging Face format with weights, tokenizer and chat template. Only a gateway over
    vLLM can do without: it then serves Best-of-N and the reference, and no adapters."""
    name: str = Field(default="", pattern=r"^[^\s]*$")
    """Model id in the API; by default the folder's name."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights in memory. float32 keeps log-probabilities comparable on a CPU."""

    @property
    def served_name(self) -> str:
        """The id that `/v1/models` lists and clients send."""
        return self.name or (self.path.resolve().name if self.path is not None else "")

    @property
    def folder(self) -> Path:
        """The model's folder. Raises `ConfigError` if none is configured."""
        if self.path is None:
            raise ConfigError(
                "model.path is not set, and this needs the model's own files: name a folder in "
                "Hugging Face format with the same weights"
            )
        return self.path


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
    adapters: bool = True
    """Whether it takes adapters; without, it stands for a server that was started without LoRA."""


class VllmEngineConfig(Section):
    """One or many vLLM servers, reached over HTTP."""

    type: Literal["vllm"] = "vllm"
    """Names this engine."""
    urls: tuple[str, ...] = ()
    """Base URLs of the replicas, all serving the same model. `bond up` starts a server of its own
    where there are none."""
    training_urls: tuple[str, ...] = ()
    """Replicas for the trainer alone; without any it shares those of serving, at low priority."""
    api_key: str | None = Field(default=None, repr=False)
    """What the servers were started with as `--api-key`."""
    model_name: str = ""
    """The name that the servers give the base model, if they serve several."""
    adapters_path: Path | None = None
    """Where the servers see this deployment's folder of adapters, if not under the same path."""
    reference_as: Literal["adapter", "base"] = "adapter"
    """Who answers for the reference: an adapter of zeros, or the base model. vLLM on a CPU gives
    base rows the delta of adapter rows in the same batch, so `base` is for GPUs."""
    max_adapters: int = Field(default=4, ge=2)
    """Versions resident at once beside the reference; `--max-loras` of the servers is at least one
    more, and two more where the trainer shares them."""
    timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Longest time that one request may take."""
    connect_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Longest time until a connection stands."""
    health_every_s: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Seconds between looks at each replica."""
    health_timeout_s: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    """A replica that does not answer that look for so long counts as away."""
    breaker_failures: int = Field(default=3, ge=1)
    """Failures in a row after which a replica gets no requests until it answers a look again."""

    @field_validator("urls", "training_urls")
    @classmethod
    def _are_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(http_url(url) for url in value)


EngineConfig = Annotated[
    LocalEngineConfig | VllmEngineConfig | FakeEngineConfig, Field(discriminator="type")
]
