"""A request's row before anything is known of its answer."""

from dataclasses import dataclass

from bond_core.holdout import split_of
from bond_core.store.records import CompletionRecord, CompletionStatus
from bond_core.types import Candidate, raw_prompt
from bond_server.ids import fingerprint_of
from bond_server.services.ask import Ask, Plan


@dataclass(slots=True, kw_only=True)
class Draft:
    """The row's name and what decides about keeping it; `record` is the row, made once."""

    id: str
    """UUIDv7."""
    ask: Ask
    plan: Plan
    keep_content: bool
    consents: bool
    """Whether it may be learned from, if there is something to learn."""
    standard: bool
    """Whether the sampling parameters are the configured standard ones."""
    queue_s: float | None = None
    """How long it waited for its places; None until it has them, and may still be refused."""

    @property
    def created_at(self) -> float:
        """Unix seconds at arrival."""
        return self.ask.context.arrived_at

    @property
    def requested_model(self) -> str:
        """As the client named it."""
        return self.ask.requested_model

    @property
    def system_fingerprint(self) -> str:
        """The gateway's version and the policy's."""
        return fingerprint_of(self.plan.version)

    def record(
        self,
        *,
        latency_s: float,
        status: CompletionStatus = "ok",
        prompt_token_ids: tuple[int, ...] = (),
        candidates: tuple[Candidate, ...] = (),
        cut_tokens: int = 0,
        chosen: tuple[int, ...] = (),
        degraded: str | None = None,
        error: str | None = None,
        generate_s: float = 0.0,
        score_s: float = 0.0,
        score: float | None = None,
    ) -> CompletionRecord:
        """The row with what came of the request; only answers are learned from, or listed."""
        ask, plan = self.ask, self.plan
        # raw text is not what conversations are trained for
        conversation = raw_prompt(ask.messages) is None
        kept = status == "ok" and self.consents and self.keep_content
        return CompletionRecord(
            id=self.id,
            created_at=self.created_at,
            requested_model=ask.requested_model,
            arm=plan.arm,
            version=plan.version,
            experiment=plan.experiment,
            best_of=plan.best_of,
            n=plan.n,
            messages=ask.messages,
            params=ask.params,
            standard_sampling=conversation and self.standard,
            split=split_of(ask.messages),
            may_train=kept,
            unit=ask.unit,
            key=ask.context.caller.key_id,
            keep_content=self.keep_content,
            prompt_token_ids=prompt_token_ids,
            candidates=candidates,
            cut_tokens=cut_tokens,
            chosen=chosen,
            status=status,
            degraded=degraded,
            error=error,
            queue_s=self.queue_s or 0.0,
            generate_s=generate_s,
            score_s=score_s,
            latency_s=latency_s,
            score=score,
            origin=ask.origin,
            system_fingerprint=self.system_fingerprint,
            stored=kept and conversation,
        )
