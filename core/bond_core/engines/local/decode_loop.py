"""The running rows of one policy version, and their step."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from bond_core.engines.local.forward import Forward
from bond_core.engines.local.kv_cache import SlotCache
from bond_core.engines.local.rows import (
    GenerateRequest,
    Row,
    initial_adjustment,
    seeded_uniforms,
)
from bond_core.engines.local.sampler import SamplingPlan, Told, draw
from bond_core.engines.local.weights import PolicyWeights
from bond_core.engines.text import IncrementalText, decode
from bond_core.errors import EngineUnavailableError
from bond_core.types import Alternative, FinishReason, TokenDetail


def prefill(forward: Forward, requests: list[GenerateRequest]) -> None:
    """Run the prompts of requests of one version through the model, once each."""
    forward.use(requests[0].weights)
    logits, cache = forward.prefill([request.prompt_token_ids for request in requests])
    for i, request in enumerate(requests):
        request.prompt = cache.row(i, len(request.prompt_token_ids))
        request.first_logits = logits[i]


class RunningBatch:
    """Rows under one version's weights. A row joins when its prompt is ready and leaves when it
    ends; neither waits for the others. Only the decode thread may call it."""

    def __init__(
        self,
        weights: PolicyWeights,
        forward: Forward,
        tokenizer: Any,
        end_token_ids: Collection[int],
        generator: torch.Generator,
    ) -> None:
        self.weights = weights
        self.rows: list[Row] = []
        self.torn = False
        """Whether newcomers are half written into the cache that the rows share."""
        self._forward = forward
        self._tokenizer = tokenizer
        self._end_token_ids = frozenset(end_token_ids)
        self._generator = generator
        self._cache: SlotCache | None = None
        self._changed = True
        self._ended: list[GenerateRequest] = []
        self._columns = 0
        device = forward.model.device
        self._plan = SamplingPlan.of([], forward.model.vocab_size, device)
        self._tokens_B = self._positions_B = self._slots_B = torch.empty(0, device=device)

    def start(self, request: GenerateRequest, count: int) -> None:
        """Draw the first token of `count` more candidates of a request that has been prefilled."""
        if request.prompt is None or request.first_logits is None:
            raise RuntimeError("a request must be prefilled before its candidates start")
        rows = [self._new_row(request, request.started + i) for i in range(count)]
        request.started += count
        logits_BV = request.first_logits.expand(count, -1)
        plan = SamplingPlan.of(rows, logits_BV.shape[-1], logits_BV.device)
        tokens_B, logprobs_B, told = draw(logits_BV, plan, self._generator)
        alive = self._take(rows, tokens_B, logprobs_B, told)
        running = [row for row, lives in zip(rows, alive, strict=True) if lives]
        if running:
            if self._cache is None:
                self._cache = SlotCache(request.prompt)
            first_slot = len(self.rows)
            columns = len(request.prompt_token_ids) + 1
            self.torn = True
            self._cache.reserve(first_slot + len(running), columns)
            self._cache.write(request.prompt, first_slot, len(running))
            self.rows += running
            self._changed = True
            self.torn = False
        if request.started == request.n:
            request.prompt = request.first_logits = None
        self._answer()

    def drop_cancelled(self) -> None:
        """Free the rows of cancelled requests."""
        gone = [i for i, row in enumerate(self.rows) if row.request.cancelled]
        if gone:
            self._remove(gone)

    def abandon(self) -> list[GenerateRequest]:
        """Give up all rows and what they share; returns their requests."""
        requests = list(dict.fromkeys(row.request for row in self.rows))
        self.rows.clear()
        self._ended.clear()
        self._cache = None
        self.torn = False
        return requests

    def step(self) -> None:
        """Draw one more token for every row."""
        if self._cache is None or not self.rows:
            return
        self._forward.use(self.weights)
        if self._changed:
            self._gather()
        self._cache.reserve(len(self.rows), self._columns)
        self._cache.aim(self._slots_B, self._positions_B, self._columns)
        logits_BV = self._forward.decode(
            self._cache, self._tokens_B, self._positions_B, self._columns
        )
        self._tokens_B, logprobs_B, told = draw(logits_BV, self._plan, self._generator)
        self._positions_B = self._positions_B + 1
        self._columns += 1
        alive = self._take(self.rows, self._tokens_B, logprobs_B, told)
        if not all(alive):
            self._remove([i for i, lives in enumerate(alive) if not lives])
            self._answer()

    def _new_row(self, request: GenerateRequest, index: int) -> Row:
        params = request.params
        model = self._forward.model
        needs_text = bool(params.stop) or request.piece is not None
        tokens = request.drawn[index] = []
        return Row(
            token_ids=tokens,
            request=request,
            index=index,
            adjustment=initial_adjustment(params, model.vocab_size, model.device),
            uniforms=None
            if params.seed is None
            else seeded_uniforms(params.seed, index, request.room),
            text=IncrementalText(self._tokenizer, params.stop) if needs_text else None,
        )

    def _gather(self) -> None:
        """Rebuild what depends on which rows run."""
        model = self._forward.model
        positions = [row.position for row in self.rows]
        self._plan = SamplingPlan.of(self.rows, model.vocab_size, model.device)
        self._tokens_B = torch.tensor([row.token_ids[-1] for row in self.rows], device=model.device)
        self._positions_B = torch.tensor(positions, device=model.device)
        self._slots_B = torch.arange(len(self.rows), device=model.device)
        self._columns = max(positions) + 1
        self._changed = False

    def _remove(self, indices: list[int]) -> None:
        """Free rows and close the gaps with the last ones."""
        for i in reversed(indices):
            last = self.rows.pop()
            if i < len(self.rows):
                self.rows[i] = last
                if self._cache is not None:
                    self._cache.move(len(self.rows), i, last.position)
        self._changed = True

    def _take(
        self, rows: list[Row], tokens_B: Tensor, logprobs_B: Tensor, told: Told
    ) -> list[bool]:
        """Give each row its token; say which rows go on."""
        for i, (logprob, top) in told.items():
            rows[i].details.append(self._detail(int(tokens_B[i]), logprob, top))
        return [
            self._take_one(row, token_id, logprob)
            for row, token_id, logprob in zip(
                rows, tokens_B.tolist(), logprobs_B.tolist(), strict=True
            )
        ]

    def _detail(self, token: int, logprob: float, top: list[tuple[int, float]]) -> TokenDetail:
        def text(token_id: int) -> str:
            return self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)

        return TokenDetail(text(token), logprob, tuple(Alternative(text(t), v) for t, v in top))

    def _take_one(self, row: Row, token_id: int, logprob: float) -> bool:
        if not math.isfinite(logprob):
            self._fail(row.request)
            return False
        row.token_ids.append(token_id)
        row.logprobs.append(logprob)
        if row.adjustment is not None:
            row.penalise(token_id)
        ended = token_id in self._end_token_ids
        if row.text is not None and not ended:
            piece = row.text.push(token_id)
            if piece:
                row.show(piece)
            ended = row.text.stopped
        if ended:
            self._finish(row, "stop")
            return False
        if len(row.token_ids) == row.request.room:
            self._finish(row, "length")
            return False
        return True

    def _fail(self, request: GenerateRequest) -> None:
        """Fail the one request whose logits are no law; its other rows leave before a step."""
        if not request.cancelled:
            request.cancelled = True
            request.failed(
                EngineUnavailableError(
                    f"the model's logits under version {self.weights.version!r} are not finite for "
                    "this request: check the weights, or send milder sampling parameters"
                )
            )

    def _finish(self, row: Row, reason: FinishReason) -> None:
        """Store the completion; note the request as ended if it was the last one."""
        request = row.request
        if row.text is None:
            ended = row.token_ids[-1] in self._end_token_ids
            text = decode(self._tokenizer, row.token_ids[:-1] if ended else row.token_ids)
        else:
            rest = row.text.finish()
            if rest:
                row.show(rest)
            text = row.text.text
        request.completions[row.index] = row.completion(text, reason)
        if len(request.completions) == request.n:
            self._ended.append(request)

    def _answer(self) -> None:
        """Answer the requests that have ended; their rows are free by now."""
        ended, self._ended = self._ended, []
        for request in ended:
            if not request.cancelled:
                request.done(tuple(request.completions[i] for i in range(request.n)))
