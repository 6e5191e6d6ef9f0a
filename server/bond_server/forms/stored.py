"""Rows of the log as stored completions, and as lines of an export."""

import json
from typing import Any

from bond_core.store.records import CompletionRecord
from bond_core.types import Candidate, raw_prompt
from bond_server.forms.chat import ChatForm
from bond_server.ids import COMPLETION_PREFIX, TEXT_COMPLETION_PREFIX
from bond_server.schemas.stored import StoredCompletion, StoredMessage
from bond_server.services.drawing import DEADLINE
from bond_server.services.generation import Answer

_FORM = ChatForm(return_candidates=False)


def stored_view(record: CompletionRecord) -> StoredCompletion:
    """The completion as it was answered, with what was asked for."""
    params = record.params
    return {
        **_FORM.whole(_answer(record)),
        "request_id": record.id,
        "metadata": dict(record.origin.metadata),
        "input_user": record.origin.user,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "seed": params.seed,
        "tools": params.further.get("tools"),
        "tool_choice": params.further.get("tool_choice"),
        "response_format": params.further.get("response_format"),
        "service_tier": "default",
    }


def stored_messages(record: CompletionRecord) -> list[StoredMessage]:
    """What was asked; each message's id is the completion's with its place."""
    return [
        StoredMessage(id=f"{COMPLETION_PREFIX}{record.id}-{index}", **message.as_dict())
        for index, message in enumerate(record.messages)
    ]


def export_line(record: CompletionRecord) -> str:
    """One row as a line of JSON: all candidates with their scores. Its `messages` are what
    `bond train --prompts` reads."""
    is_text = raw_prompt(record.messages) is not None
    prefix = TEXT_COMPLETION_PREFIX if is_text else COMPLETION_PREFIX
    line: dict[str, Any] = {
        "id": prefix + record.id,
        "created_at": record.created_at,
        "model": record.requested_model,
        "arm": record.arm.value,
        "version": record.version,
        "experiment": record.experiment,
        "status": record.status,
        "degraded": record.degraded,
        "best_of": record.best_of,
        "n": record.n,
        "messages": [message.as_dict() for message in record.messages],
        "candidates": [_candidate(candidate) for candidate in record.candidates],
        "chosen": list(record.chosen),
        "score": record.score,
        "judge_score": record.judge_score,
        "gold_score": record.gold_score,
        "log_ratio": record.log_ratio,
        "temperature": record.params.temperature,
        "top_p": record.params.top_p,
        "max_tokens": record.params.max_tokens,
        "seed": record.params.seed,
        "standard_sampling": record.standard_sampling,
        "split": record.split.value,
        "may_train": record.may_train,
        "unit": record.unit,
        "user": record.origin.user,
        "metadata": dict(record.origin.metadata),
        "latency_s": record.latency_s,
        "superseded": record.superseded,
        "redacted": record.redacted,
    }
    return json.dumps(line)


def _answer(record: CompletionRecord) -> Answer:
    selected = any(candidate.score is not None for candidate in record.candidates)
    samples_were_cut = record.degraded == DEADLINE and record.best_of == record.n
    strategy = "best_of_n" if selected or (record.degraded and not samples_were_cut) else "single"
    overhead_s = record.latency_s - record.generate_s - record.score_s
    return Answer(record, strategy, overhead_s, commit_s=0.0, note=None)


def _candidate(candidate: Candidate) -> dict[str, Any]:
    completion = candidate.completion
    return {
        "index": candidate.index,
        "text": completion.text,
        "tool_calls": [call.as_dict() for call in completion.tool_calls],
        "finish_reason": completion.finish_reason,
        "score": candidate.score,
        "tokens": len(completion.token_ids),
        "logprob": completion.logprob,
    }
