"""Which reward model or function judges the answers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from bond_core.config.base import Section, http_url


class ClassifierScorerConfig(Section):
    """A sequence-classification reward model with one label, in this process."""

    type: Literal["classifier"] = "classifier"
    """Names this scorer."""
    path: Path
    """Folder in Hugging Face format; its own chat template renders the conversation."""
    device: str = "cpu"
    """Torch device."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Of the weights in memory."""
    batch_size: int = Field(default=64, ge=1)
    """Conversations in one forward pass."""
    max_tokens: int = Field(default=2048, ge=8)
    """A longer conversation is an error; nothing is cut."""


class FunctionScorerConfig(Section):
    """A Python function `(prompts, completions, **kwargs) -> list[float]`, as TRL takes them."""

    type: Literal["function"] = "function"
    """Names this scorer."""
    function: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """`path/to/file.py:function` or `package.module:function`."""
    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that one call of the function may take; a longer one is a scoring error."""


class SelfTestConfig(Section):
    """One question with a good and a bad answer, which a scorer has to tell apart at start.

    With `self_test: null` the two below are still scored, to see that the scores are raw, but may
    come in any order.
    """

    prompt: str = "My parcel has not arrived. Can you help me?"
    """What the user says."""
    good: str = (
        "I am sorry that your parcel is late. Please send me the order number, and I will find out "
        "where it is and tell you today."
    )
    """An answer that any reward model should like better than the other."""
    bad: str = "No. Go away, that is your own fault."
    """An answer that it should not like."""


class PoolingScorerConfig(Section):
    """A sequence reward model on a vLLM pooling server."""

    type: Literal["pooling"] = "pooling"
    """Names this scorer."""
    url: str
    """Base URL of the server, started with `--runner pooling`; a `/v1` at its end is taken off."""
    api_key: str | None = Field(default=None, repr=False)
    """What the server was started with as `--api-key`; better given as `BOND_SCORER__API_KEY`."""
    model_name: str = ""
    """The name that the server gives the reward model, if it serves several."""
    path: Path | None = None
    """The reward model's folder, if it is at hand: conversations are then rendered here and sent
    many at once, and its digest identifies the scores. Without it the server renders them."""
    batch_size: int = Field(default=64, ge=1)
    """Conversations in one request, or requests at once where the server renders."""
    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Longest time that one request may take; a longer one is a scoring error."""
    self_test: SelfTestConfig | None = SelfTestConfig()
    """Tried at start; `null` lets the two answers' scores come in any order."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        return http_url(value)


ScorerConfig = Annotated[
    ClassifierScorerConfig | PoolingScorerConfig | FunctionScorerConfig,
    Field(discriminator="type"),
]
