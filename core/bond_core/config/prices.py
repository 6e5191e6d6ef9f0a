"""What tokens cost, where somebody pays for them."""

from pydantic import Field

from bond_core.config.base import Section


class PricesConfig(Section):
    """USD per million tokens. With one of them set, answers say what they cost, and
    `bond_cost_usd_total` adds it up; what has no price costs nothing. All unset: nothing is
    computed."""

    prompt_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of the prompt, once for all its candidates, as `usage.prompt_tokens` counts them."""
    completion_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of every candidate, returned or not, ended or cut off, as `usage.completion_tokens`."""
    reward_tokens: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """That the scorer read to choose: prompt and answer of each candidate that has a score, in
    the policy's tokens. Measurements after the answer are no part of its price."""

    @property
    def are_set(self) -> bool:
        """Whether there is any price."""
        prices = (self.prompt_tokens, self.completion_tokens, self.reward_tokens)
        return any(price is not None for price in prices)

    def cost_usd(self, prompt: int, completion: int, scored: int) -> float:
        """USD of so many tokens of each kind."""
        return (
            prompt * (self.prompt_tokens or 0.0)
            + completion * (self.completion_tokens or 0.0)
            + scored * (self.reward_tokens or 0.0)
        ) / 1e6
