"""Which reward model or function judges the answers."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bond_core.config.base import Section


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


ScorerConfig = Annotated[ClassifierScorerConfig | FunctionScorerConfig, Field(discriminator="type")]
