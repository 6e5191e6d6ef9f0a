"""What the trainer minimises: one section for each objective, told apart by `type`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from bond_core.config.base import Section

KlEstimate = Literal["sequence", "to_go", "exact"]


class JBondConfig(Section):
    """J-BOND (arXiv 2407.14622, Algorithm 2), minimising
    (1 - beta) * forward + beta * backward + gamma * regulariser."""

    type: Literal["jbond"] = "jbond"
    """Names this objective, the default."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Weight of the backward term."""
    gamma: float = Field(default=0.0, ge=0)
    """Weight of KL(policy || anchor)."""
    eta: float = Field(default=0.02, ge=0, le=1)
    """Rate of the anchor's exponential moving average; 1 is a hard update each step."""
    num_anchor_samples: int = Field(default=4, ge=2)
    """Anchor samples per prompt; the paper's 2, or more for lower variance at the same mean."""
    num_policy_samples: int = Field(default=1, ge=1)
    """Policy samples per prompt."""
    baseline: Literal["none", "batch", "group"] = "batch"
    """Leave-one-out mean of the other returns: of the batch, of the prompt's own, or none."""
    kl: KlEstimate = "exact"
    """How the KL between policy and anchor enters: by the log-ratio of the whole answer
    (`sequence`, the paper's), of each token and those after it (`to_go`), or exactly per token over
    the whole vocabulary (`exact`). The mean gradient is the same; the noise falls in this order."""


class FixedBondConfig(Section):
    """BOND at a fixed N (arXiv 2407.14622, sections 3 and 4), minimising
    (1 - beta) * KL(Best-of-N || policy) + beta * KL(policy || Best-of-N)."""

    type: Literal["bond"] = "bond"
    """Names this objective."""
    n: int = Field(default=8, ge=2)
    """N of the Best-of-N that is distilled, of the anchor."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """From the forward KL (0) through Jeffreys to the backward KL (1), which has its factor
    N - 1."""
    num_anchor_samples: int = Field(default=8, ge=2)
    """Anchor samples per prompt, at least n; more lower the bias of the quantile."""
    num_policy_samples: int = Field(default=4, ge=1)
    """Policy samples per prompt."""
    baseline: Literal["none", "batch", "group"] = "group"
    """Leave-one-out mean of the other returns: of the batch, of the prompt's own, or none."""
    kl: KlEstimate = "exact"
    """How the KL between policy and anchor enters; see J-BOND."""
    ties: Literal["auto", "continuous", "tied"] = "auto"
    """The estimator of the quantile reward: `continuous` is psi(m + 1) - psi(k + 1), `tied` the
    plug-in that minds ties, `auto` the latter, less its constant, for a sample that ties with one
    of the anchor's, and the former for every other."""
    anchor_every_steps: int = Field(default=0, ge=0)
    """Steps between hard updates of the anchor (Algorithm 1, iterated BOND); 0 keeps the
    reference."""
    logged: bool = True
    """While the anchor is the reference, take a row's logged Best-of-N candidates as its samples,
    once; what they lack of `num_anchor_samples` is drawn."""

    @model_validator(mode="after")
    def _enough_samples(self) -> "FixedBondConfig":
        if self.num_anchor_samples < self.n:
            raise ValueError(
                f"num_anchor_samples is {self.num_anchor_samples}, fewer than n {self.n}: "
                "Best-of-n needs n of them; raise it or lower n"
            )
        return self


class RlooConfig(Section):
    """KL-regularised policy gradient with a leave-one-out baseline (arXiv 2402.14740)."""

    type: Literal["rloo"] = "rloo"
    """Names this objective."""
    kl_coefficient: float = Field(default=0.05, ge=0)
    """What a nat of KL to the reference costs, in units of the reward."""
    num_policy_samples: int = Field(default=4, ge=2)
    """Policy samples per prompt."""


class GkdConfig(Section):
    """On-policy distillation of a teacher policy (GKD, arXiv 2306.13649)."""

    type: Literal["gkd"] = "gkd"
    """Names this objective."""
    teacher: Path | Literal["active"] = "active"
    """A folder with a larger model of the same tokenizer, or the version that is live when the
    trainer starts."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """0 is KL(teacher || student), 1 is KL(student || teacher), between them the generalised
    Jensen-Shannon divergence."""
    num_policy_samples: int = Field(default=1, ge=1)
    """Answers per prompt."""


ObjectiveConfig = Annotated[
    JBondConfig | FixedBondConfig | RlooConfig | GkdConfig, Field(discriminator="type")
]
