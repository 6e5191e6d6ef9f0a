"""What tracing costs a request: switched off, on for requests that are not sampled, on for all.

Requests go straight into the app in this process (no socket), one after another, to an instant fake
engine, in rounds whose order of settings rotates; the figure is the median over rounds of the
processor time per request, which a busy machine disturbs less than the clock. Off is measured
twice, so that the difference between the two is the noise. Beside it, what off leaves on the way:
one look at a context variable per request to a vLLM server.

    python bench/tracing.py --out bench/results/tracing/off.json
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import timeit
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from bond_core.config import load_config
from bond_core.trace_context import TRACE_HEADERS
from bond_server.app import create_app

BODY = {"messages": [{"role": "user", "content": "where is my parcel?"}], "max_tokens": 8}
SETTINGS = ("off", "off again", "on, not sampled", "on")


class Nowhere(SpanExporter):
    """Takes spans and throws them away."""

    def export(self, spans: object) -> SpanExportResult:
        """See `SpanExporter`."""
        return SpanExportResult.SUCCESS


async def opened(stack: AsyncExitStack, folder: Path, setting: str) -> httpx.AsyncClient:
    """A client of a gateway of its own."""
    tracing = {"sample": 0.0} if setting == "on, not sampled" else {}
    flags = {
        "model": {"path": str(folder / "none"), "name": "m"},
        "engine": {"type": "fake"},
        "scorer": {"type": "function", "function": f"{folder / 'rewards.py'}:length"},
        "data_dir": str(folder / setting.replace(", ", "-").replace(" ", "-")),
        "store": {"durability": "process"},
        "tracing": tracing,
    }
    exporter = None if setting.startswith("off") else Nowhere()
    app = create_app(load_config(flags=flags, environ={}), exporter)
    await stack.enter_async_context(app.router.lifespan_context(app))
    transport = httpx.ASGITransport(app=app)
    return await stack.enter_async_context(
        httpx.AsyncClient(transport=transport, base_url="http://gateway")
    )


async def measured(requests: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds per request of each round, by setting."""
    found: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        rewards = "def length(prompts, completions, **_):\n    return [1.0 for _ in completions]\n"
        (folder / "rewards.py").write_text(rewards)
        async with AsyncExitStack() as stack:
            clients = {s: await opened(stack, folder, s) for s in SETTINGS}
            for number in range(rounds + 1):
                turn = number % len(SETTINGS)
                order = SETTINGS[turn:] + SETTINGS[:turn]
                for setting in order:
                    began = time.process_time()
                    for _ in range(requests):
                        answer = await clients[setting].post("/v1/best-of-n", json=BODY)
                        answer.raise_for_status()
                    spent = (time.process_time() - began) / requests * 1e6
                    if number:  # the first is to warm up
                        found[setting].append(spent)
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rounds = asyncio.run(measured(arguments.requests, arguments.rounds))
    times = timeit.repeat(TRACE_HEADERS.get, number=1_000_000, repeat=5)
    result = {
        "requests_per_round": arguments.requests,
        "median_cpu_us_per_request": {s: statistics.median(v) for s, v in rounds.items()},
        "context_variable_ns": min(times) * 1000,
        "rounds_cpu_us": rounds,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "rounds_cpu_us"}, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
