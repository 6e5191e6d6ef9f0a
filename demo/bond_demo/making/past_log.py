"""The seed log: a past of Best-of-8 traffic, for learning before any new request has come."""

import gzip
import json
from pathlib import Path
from typing import Any

from bond_demo.making.scored_samples import Samples
from bond_demo.prompts import as_dicts

CANDIDATES = 8


def write_past_log(path: Path, samples: Samples, scores: list[list[float]]) -> None:
    """One JSON object a line, compressed; the same content gives the same bytes."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for place in range(len(samples.conversations)):
            row = json.dumps(_row(samples, scores, place), separators=(",", ":"))
            file.write(row.encode() + b"\n")


def _row(samples: Samples, scores: list[list[float]], place: int) -> dict[str, Any]:
    return {
        "messages": as_dicts(samples.conversations[place]),
        "prompt_token_ids": samples.prompt_tokens[place],
        "candidates": [
            {
                "token_ids": list(drawn.token_ids),
                "text": text,
                "finish_reason": drawn.finish_reason,
                "logprob": round(drawn.logprob, 4),
                "score": round(score, 6),
            }
            for drawn, text, score in zip(
                samples.drawn[place], samples.texts[place], scores[place], strict=True
            )
        ],
    }
