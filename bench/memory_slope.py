"""Whether the gateway's memory grows with the requests that it has answered.

    python bench/memory_slope.py --out bench/results/memory_slope/REPORT.json

The fake engine, the log and the access log on, a fixed number of users who ask one after another,
at a constant rate as far as the machine allows, so that nothing piles up: one request in four is
Best-of-4, the others are single samples, and no two prompts are alike, so that whatever remembers
prompts shows. Every second the resident memory is read beside the number of answers so far. The
slope is that of the least-squares line through the readings after `--warm-up` requests; memory
that is merely kept for reuse is reached before.
"""

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load import LoadClient
from processes import Server, gateway

GATEWAY_CORE = 0
IDLE_S = 10.0
REWARD = """def length(prompts, completions, **kwargs):
    return [float(len(turns[0]["content"])) for turns in completions]
"""


def configuration(folder: Path) -> dict[str, Any]:
    """A gateway over an engine that answers at once."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARD)
    return {
        "model": {"path": "no-model", "name": "fake"},
        "engine": {"type": "fake", "capacity": 256},
        "scorer": {"type": "function", "function": f"{rewards}:length"},
    }


def request_of(client: LoadClient, number: int) -> bytes:
    """The bytes of one request, whose prompt no other has."""
    words = f"Where is my parcel number {number}? " + "I have waited for long. " * (number % 40)
    body = {"messages": [{"role": "user", "content": words}], "max_tokens": 32}
    if number % 4:
        return client.body("/v1/distilled", body)
    return client.body("/v1/best-of-n", {**body, "best_of": 4})


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the least-squares line through (x, y), and its standard error."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    line = statistics.linear_regression(xs, ys)
    mean_x = statistics.fmean(xs)
    spread = sum((x - mean_x) ** 2 for x in xs)
    rest = sum((y - line.intercept - line.slope * x) ** 2 for x, y in points)
    return line.slope, (rest / (len(points) - 2) / spread) ** 0.5


async def readings(
    server: Server, client: LoadClient, rate: float, users: int, count: int
) -> tuple[list[tuple[int, float]], Counter[int]]:
    """So many requests; (answers so far, MiB) every second, and the statuses."""
    start = time.perf_counter()
    statuses: Counter[int] = Counter()

    async def user(first: int) -> None:
        due_s = first / rate
        for number in range(first, count, users):
            now_s = time.perf_counter() - start
            due_s = max(due_s, now_s)  # what is late is not made up for
            await asyncio.sleep(due_s - now_s)
            outcome = await client.timed(request_of(client, number), start, due_s)
            statuses[outcome.status] += 1
            due_s += users / rate

    async def watch() -> None:
        while True:
            found.append((statuses.total(), server.rss_mib()))
            await asyncio.sleep(1.0)

    found: list[tuple[int, float]] = []
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(user(first) for first in range(users)))
    watching.cancel()
    return found, statuses


async def idle_mib(server: Server) -> float:
    """Median of what it holds while nobody asks."""
    found: list[float] = []
    until = time.perf_counter() + IDLE_S
    while time.perf_counter() < until:
        await asyncio.sleep(0.5)
        found.append(server.rss_mib())
    return round(statistics.median(found), 2)


async def measured(rate: float, users: int, warm_up: int, count: int) -> dict[str, Any]:
    """One gateway's life."""
    with (
        tempfile.TemporaryDirectory() as folder,
        gateway(configuration(Path(folder)), GATEWAY_CORE) as server,
    ):
        client = LoadClient("127.0.0.1", server.port)
        before = await idle_mib(server)
        cpu_s, began = server.cpu_s(), time.perf_counter()
        points, statuses = await readings(server, client, rate, users, warm_up + count)
        seconds = time.perf_counter() - began
        share = (server.cpu_s() - cpu_s) / seconds
        after = await idle_mib(server)
        client.close()
    grown, error = slope([(n, mib) for n, mib in points if n >= warm_up])
    return {
        "rate": rate,
        "users": users,
        "seconds": round(seconds, 1),
        "cpu_share": round(share, 3),
        "statuses": {str(status): n for status, n in sorted(statuses.items())},
        "warm_up_requests": warm_up,
        "requests_after": count,
        "slope_mib_per_100k": round(1e5 * grown, 3),
        "slope_standard_error": round(1e5 * error, 3),
        "idle_mib_before": before,
        "idle_mib_after": after,
        "mib_by_answers": [[n, round(mib, 2)] for n, mib in points],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=400.0, help="requests per second, at most")
    parser.add_argument("--users", type=int, default=8, help="requests at once")
    parser.add_argument("--warm-up", type=int, default=10_000, help="requests before the slope")
    parser.add_argument("--requests", type=int, default=90_000, help="requests that it is over")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = asyncio.run(
        measured(arguments.rate, arguments.users, arguments.warm_up, arguments.requests)
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"python": platform.python_version(), **found}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "mib_by_answers"}))


if __name__ == "__main__":
    main()
