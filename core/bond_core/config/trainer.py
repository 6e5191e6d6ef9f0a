"""How the trainer learns, evaluates and proposes."""

from pathlib import Path
from typing import cast

from pydantic import Field, field_validator

from bond_core.config.base import Section
from bond_core.config.objective import JBondConfig, ObjectiveConfig
from bond_core.config.rollouts import RolloutsConfig


class LoraConfig(Section):
    """The shape of the adapter."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the factors."""
    alpha: float = Field(default=32.0, gt=0)
    """The delta is alpha / rank times the product of the factors."""
    freeze_a: bool = True
    """Train B alone: the product is then linear in the parameters, so that the moving average of
    the factors is exactly the moving average of the weights."""
    target_modules: str | list[str] = "all-linear"
    """PEFT's names; never the output head or the embeddings, which vLLM cannot serve."""


class WinnersConfig(Section):
    """The forward part on winners of logged Best-of-N requests, before J-BOND begins."""

    enabled: bool = True
    """Off starts J-BOND from the reference."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Of AdamW in this phase."""
    rows_per_step: int = Field(default=64, ge=1)
    """Winners in one update."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    max_rows: int = Field(default=8192, ge=1)
    """Rows per phase; the newest are taken."""
    min_rows: int = Field(default=256, ge=1)
    """With fewer qualifying rows the phase is skipped."""


class EvaluationConfig(Section):
    """Held-out evaluation, run on a schedule and before every proposal."""

    every_steps: int = Field(default=50, ge=1)
    """J-BOND steps between evaluations."""
    num_prompts: int = Field(default=64, ge=2)
    """Held-out prompts per evaluation."""
    samples_per_prompt: int = Field(default=4, ge=1)
    """Fresh answers of policy and incumbent per prompt."""
    reference_samples_per_prompt: int = Field(default=16, ge=2)
    """Drawn once per prompt and kept: they give the quantile, and Best-of-N's reward."""
    gate_prompts: Path | None = None
    """JSON lines of held-out prompts for the gate; without, those of the log's gate half."""
    report_prompts: Path | None = None
    """JSON lines of held-out prompts for published numbers; without, the log's report half."""
    min_prompts: int = Field(default=16, ge=2)
    """While the held-out half has fewer prompts, nothing is evaluated or proposed."""


class SuiteConfig(Section):
    """A suite of the user's own: what the policy must not forget while it learns."""

    function: str = Field(pattern=r"^.+:[A-Za-z_]\w*$")
    """`path/to/file.py:function` or `package.module:function`, called as a function scorer is; a
    higher score is a better answer."""
    prompts: Path
    """JSON lines of the suite's prompts; never learned from."""
    margin: float = Field(default=0.1, ge=0)
    """How far below the reference the lower bound of the challenger's mean score may be, in the
    function's own unit."""
    timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that one call of the function may take."""


class GateConfig(Section):
    """What a challenger has to show on the gate half of the held-out prompts."""

    level: float = Field(default=0.05, gt=0, lt=0.5)
    """Probability of ever promoting a version without gain, over all challengers to come (LOND)."""
    min_gain: float = Field(default=0.0, ge=0)
    """Smallest reward difference to the incumbent that its lower bound must exceed."""
    kl_budget_nats: float = Field(default=4.0, gt=0)
    """Upper bound on KL to the reference, per answer."""
    max_length_ratio: float = Field(default=1.5, gt=1)
    """Longest mean answer against the reference's."""
    judge_margin: float = Field(default=0.25, ge=0)
    """How far below the reference the lower bound of the judge's mean may be, in standard
    deviations of the judge's scores of the reference's answers to one prompt."""
    max_added_repetition: float = Field(default=0.2, ge=0, le=1)
    """How much more of an answer may repeat itself (share of 4-grams) than in the reference's."""
    max_added_identical: float = Field(default=0.2, ge=0, le=1)
    """How much more often answers to different prompts may be the same than the reference's; 1
    where one answer may be right for every prompt."""
    min_distinct_ratio: float = Field(default=0.5, ge=0, le=1)
    """Smallest share of different word pairs across prompts, over the reference's; 0 for none."""
    max_added_truncation: float = Field(default=0.1, ge=0, le=1)
    """How much larger the share of answers cut at the token limit may be than the reference's."""
    suite: SuiteConfig | None = None
    """Optional check for forgetting."""


class CurationConfig(Section):
    """Which prompts are learned from; `max_prompt_tokens` of the trainer bounds them from above."""

    min_prompt_tokens: int = Field(default=1, ge=1)
    """Shorter prompts are left out as `too_short`; the chat template's tokens count."""
    health_checks: tuple[str, ...] = (
        "ping",
        "pong",
        "test",
        "testing",
        "hello",
        "hi",
        "hey",
        "health",
        "healthcheck",
        "health check",
        "heartbeat",
        "are you there",
        "hello world",
    )
    """A prompt whose only user message is one of these is left out as `health_check`; case, white
    space and punctuation around it play no part."""
    max_unit_share: float = Field(default=0.2, gt=0, le=1)
    """Largest part of what is learned that comes from one unit; 1 for no bound. It holds while
    there are units enough to respect it (1 / share)."""
    max_key_share: float = Field(default=1.0, gt=0, le=1)
    """The same for one API key. No bound by default, for a key is often a whole application; set
    one where keys are given to strangers."""
    share_window: int = Field(default=4096, ge=1)
    """Rows of the log over which that part is taken."""
    min_unit_rows: int = Field(default=256, ge=0)
    """Rows in the window that a unit, or a key, may always have."""
    spike_window: int = Field(default=256, ge=8)
    """Recent rows, compared with the eight times as many before them."""
    spike_share: float = Field(default=0.25, gt=0, le=1)
    """Part of the recent rows from which one template or unit can be a spike."""
    spike_factor: float = Field(default=4.0, gt=1)
    """How many times its earlier part that must be."""


class TrainerConfig(Section):
    """The learner and its schedule."""

    objective: ObjectiveConfig = JBondConfig()
    lora: LoraConfig = LoraConfig()
    expected: bool = True
    """Whether a trainer belongs to this deployment: the gateways tell Prometheus, which warns of
    one that has never reported. It starts and stops nothing."""
    winners: WinnersConfig = WinnersConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()
    curation: CurationConfig = CurationConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, after the warm-up."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the rate rises linearly."""
    learning_rate_decay_steps: int = Field(default=0, ge=0)
    """Steps over which the rate falls linearly to a tenth, where it stays; 0 keeps it constant."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    prompts_per_step: int = Field(default=32, ge=1)
    """Prompts of one J-BOND step."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Prompt and answer tokens, padding included, of one forward and backward pass. Gradients are
    accumulated over as many as a step needs: less memory, the same update."""
    max_steps: int = Field(default=0, ge=0)
    """Stop after so many J-BOND steps; 0 goes on for ever."""
    rollout_rows: int = Field(default=160, ge=1)
    """Completions that the trainer decodes at once; more wait."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are not learned from; they are counted."""
    max_epochs: int = Field(default=3, ge=1)
    """How often one logged prompt may be used when training runs ahead of the traffic."""
    checkpoint_every_steps: int = Field(default=25, ge=1)
    """Steps between resumable states."""
    claim_lease_s: float = Field(default=300.0, gt=0)
    """How long claimed rows stay reserved if the trainer dies."""
    poll_s: float = Field(default=1.0, gt=0)
    """How often an idle trainer looks for new prompts."""
    tensorboard: bool = False
    """Write TensorBoard's event files beside `metrics.jsonl` in the data folder's `training`."""
    seed: int = 0
    """Of initialisation, order and sampling of rollouts."""
    device: str = ""
    """Torch device of the learner; by default that of the embedded engine, and `cpu` beside other
    engines."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of the process."""
    nice: int = Field(default=10, ge=0, le=19)
    """Lowers the process's priority, so that serving on the same cores goes first."""

    @field_validator("objective", mode="before")
    @classmethod
    def _default_objective(cls, value: object) -> object:
        """A section without `type` is J-BOND's: it was the only one, and is the one most used."""
        if not isinstance(value, dict):
            return value
        return {"type": "jbond", **cast(dict[str, object], value)}
