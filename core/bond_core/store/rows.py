"""Completion records to rows and back, every field exactly."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping

from bond_core.errors import ScoringError
from bond_core.holdout import Split
from bond_core.store.packing import pack_ids, pack_tokens, unpack_ids, unpack_tokens
from bond_core.store.records import CompletionRecord, Origin
from bond_core.store.settlement import Settlement
from bond_core.types import (
    REFERENCE_VERSION,
    Arm,
    Candidate,
    Completion,
    Message,
    SamplingParams,
    ToolCall,
)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CompletionRows:
    """One record as the rows of its two tables; `content` still lacks its `seq`."""

    main: Row
    content: Row
    settlement: Settlement | None = None
    """The claim on an idempotency key that ends with this row."""


def encode(record: CompletionRecord, settlement: Settlement | None = None) -> CompletionRows:
    """The rows of a record. Raises `ScoringError` for a number that is not finite."""
    main: Row = {
        "id": record.id,
        "created_at": record.created_at,
        "requested_model": record.requested_model,
        "arm": record.arm.value,
        "version": record.version,
        "experiment": record.experiment,
        "best_of": record.best_of,
        "n": record.n,
        "params": _encode_params(record.params),
        "standard_sampling": record.standard_sampling,
        "split": record.split.value,
        "may_train": record.may_train,
        "unit": record.unit,
        "key": record.key,
        "chosen": list(record.chosen),
        "status": record.status,
        "degraded": record.degraded,
        "error": record.error,
        "source": record.source,
        "queue_s": record.queue_s,
        "generate_s": record.generate_s,
        "score_s": record.score_s,
        "latency_s": record.latency_s,
        "score": finite("score", record.score),
        "judge_score": finite("judge_score", record.judge_score),
        "gold_score": finite("gold_score", record.gold_score),
        "log_ratio": finite("log_ratio", record.log_ratio),
        "generated_tokens": record.generated_tokens,
        "scorable": _scorable(record),
        "learnable": _learnable(record),
        "exact_best_of": _exact_best_of(record),
        "end_user": record.origin.user,
        "safety_identifier": record.origin.safety_identifier,
        "system_fingerprint": record.system_fingerprint,
        "has_content": bool(record.messages),
        "stored": record.stored and bool(record.messages),
        "redacted": record.redacted,
        "request_digest": record.origin.digest,
        "retry": record.origin.retry,
    }
    return CompletionRows(main, _encode_content(record), settlement)


def decode(row: RowMapping) -> CompletionRecord:
    """The record of a joined row of both tables."""
    candidates = _decode_candidates(row["candidates"], row["candidate_tokens"])
    return CompletionRecord(
        seq=row["seq"],
        id=row["id"],
        created_at=row["created_at"],
        requested_model=row["requested_model"],
        arm=Arm(row["arm"]),
        version=row["version"],
        experiment=row["experiment"],
        best_of=row["best_of"],
        n=row["n"],
        messages=decode_messages(row["messages"]),
        params=_decode_params(row["params"]),
        standard_sampling=row["standard_sampling"],
        split=Split(row["split"]),
        may_train=row["may_train"],
        unit=row["unit"],
        key=row["key"],
        prompt_token_ids=unpack_ids(row["prompt_tokens"] or b""),
        candidates=candidates,
        cut_tokens=_cut_tokens(row, candidates),
        chosen=tuple(row["chosen"]),
        status=row["status"],
        degraded=row["degraded"],
        error=row["error"],
        source=row["source"],
        queue_s=row["queue_s"],
        generate_s=row["generate_s"],
        score_s=row["score_s"],
        latency_s=row["latency_s"],
        score=row["score"],
        judge_score=row["judge_score"],
        gold_score=row["gold_score"],
        log_ratio=row["log_ratio"],
        origin=Origin(
            user=row["end_user"],
            safety_identifier=row["safety_identifier"],
            metadata=row["metadata"] or {},
            digest=row["request_digest"],
            retry=row["retry"],
        ),
        system_fingerprint=row["system_fingerprint"],
        stored=row["stored"],
        redacted=row["redacted"],
        superseded=row["superseded"],
    )


def _cut_tokens(row: RowMapping, candidates: Sequence[Candidate]) -> int:
    """What was generated beside the candidates; not known of an answer whose content is gone."""
    if row["chosen"] and not candidates:
        return 0
    return row["generated_tokens"] - sum(len(c.completion.token_ids) for c in candidates)


def decode_messages(stored: Sequence[Mapping[str, Any]] | None) -> tuple[Message, ...]:
    """The conversation; empty if content was not kept."""
    return tuple(
        Message(
            m["role"],
            m["content"],
            m.get("name"),
            m.get("tool_call_id"),
            _decode_tool_calls(m.get("tool_calls")),
            m.get("reasoning", ""),
        )
        for m in stored or ()
    )


def _decode_tool_calls(stored: Sequence[Mapping[str, Any]] | None) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in stored or ()
    )


def finite(name: str, value: float | None) -> float | None:
    """The value itself; SQLite would turn a NaN into NULL without a word."""
    if value is not None and not math.isfinite(value):
        raise ScoringError(f"{name} is {value}; only finite numbers are stored")
    return value


def _scorable(record: CompletionRecord) -> bool:
    answered = record.status == "ok" and bool(record.candidates) and bool(record.messages)
    return answered and not record.only_calls_tools and not record.redacted


def _learnable(record: CompletionRecord) -> bool:
    return (
        record.may_train
        and record.standard_sampling
        and record.split is Split.TRAIN
        and record.status == "ok"
        and record.degraded is None
        and bool(record.messages)
        and not record.redacted
    )


def _exact_best_of(record: CompletionRecord) -> bool:
    """Whether the candidates are exactly N scored, independent draws from the reference."""
    return (
        record.arm is Arm.BON
        and record.version == REFERENCE_VERSION
        and len(record.candidates) == record.best_of
        and all(c.score is not None for c in record.candidates)
        and _learnable(record)
    )


def _encode_params(params: SamplingParams) -> Row:
    return {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias.items()},
        "stop": list(params.stop),
        "seed": params.seed,
        "top_logprobs": params.top_logprobs,
        "further": dict(params.further),
    }


def _decode_params(row: Row) -> SamplingParams:
    bias: dict[str, float] = row["logit_bias"]
    return SamplingParams(
        max_tokens=row["max_tokens"],
        temperature=row["temperature"],
        top_p=row["top_p"],
        top_k=row["top_k"],
        presence_penalty=row["presence_penalty"],
        frequency_penalty=row["frequency_penalty"],
        logit_bias={int(token): value for token, value in bias.items()},
        stop=tuple(row["stop"]),
        seed=row["seed"],
        top_logprobs=row.get("top_logprobs"),
        further=row.get("further", {}),
    )


def _encode_content(record: CompletionRecord) -> Row:
    candidates = record.candidates
    return {
        "messages": [m.as_dict() for m in record.messages] or None,
        "prompt_tokens": pack_ids(record.prompt_token_ids) or None,
        "candidates": [
            {
                "index": c.index,
                "text": c.completion.text,
                "finish_reason": c.completion.finish_reason,
                "score": finite("candidate score", c.score),
                **_encode_further(c.completion),
            }
            for c in candidates
        ]
        or None,
        "candidate_tokens": pack_tokens(
            (c.completion.token_ids, c.completion.logprobs) for c in candidates
        )
        if candidates
        else None,
        "metadata": (dict(record.origin.metadata) or None) if record.messages else None,
    }


def _encode_further(completion: Completion) -> Row:
    """What few completions have; details are for the answer alone and are not kept."""
    further: Row = {}
    if completion.tool_calls:
        further["tool_calls"] = [call.as_dict() for call in completion.tool_calls]
    if completion.reasoning:
        further["reasoning"] = completion.reasoning
    return further


def _decode_candidates(
    readable: Sequence[Mapping[str, Any]] | None, packed: bytes | None
) -> tuple[Candidate, ...]:
    if not readable or packed is None:
        return ()
    return tuple(
        Candidate(
            index=item["index"],
            completion=Completion(
                text=item["text"],
                token_ids=token_ids,
                logprobs=logprobs,
                finish_reason=item["finish_reason"],
                tool_calls=_decode_tool_calls(item.get("tool_calls")),
                reasoning=item.get("reasoning", ""),
            ),
            score=item["score"],
        )
        for item, (token_ids, logprobs) in zip(readable, unpack_tokens(packed), strict=True)
    )
