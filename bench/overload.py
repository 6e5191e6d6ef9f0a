"""What overload does to the gateway: more than the engine can, and more than the gateway can.

    python bench/overload.py --out bench/results/overload/REPORT.json

The gateway runs on one core, the load on another. First the fake engine is what saturates: a fixed
capacity and delay, at 80 % and at three times the rate that fills it. Then the gateway itself is:
an instant engine, and more requests than its core can even refuse.
"""

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from load import LoadClient, Outcome, closed_loop, open_loop, quantile, summary
from processes import gateway, watching

GATEWAY_CORE, LOAD_CORE = 0, 1
REWARD = """def length(prompts, completions, **kwargs):
    return [float(len(turns[0]["content"])) for turns in completions]
"""
QUESTION = {"messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 8}
RECOVERED_FACTOR = 2.0
RECOVERY_S = 5.0
PROBED_S = 30.0


def configuration(folder: Path, capacity: int, delay_s: float) -> dict[str, Any]:
    """A gateway over the fake engine, with the defaults of admission."""
    rewards = folder / "rewards.py"
    rewards.write_text(REWARD)
    return {
        "model": {"path": "no-model", "name": "fake"},
        "engine": {"type": "fake", "delay_s": delay_s, "capacity": capacity},
        "scorer": {"type": "function", "function": f"{rewards}:length"},
    }


async def beyond_the_engine(
    folder: Path, capacity: int, delay_s: float, seconds: float, factors: tuple[float, ...]
) -> dict[str, Any]:
    """Open loops at shares of the rate that fills the engine."""
    saturating = capacity / delay_s
    phases: list[dict[str, Any]] = []
    with gateway(configuration(folder, capacity, delay_s), GATEWAY_CORE) as server:
        client = LoadClient("127.0.0.1", server.port)
        request = client.body("/v1/distilled", QUESTION)
        await open_loop(client, request, saturating / 2, 2.0)  # warm up
        for factor in factors:
            async with watching(server) as used:
                outcomes = await open_loop(client, request, factor * saturating, seconds)
            phases.append({"factor": factor, **summary(outcomes, seconds), "gateway": asdict(used)})
            await asyncio.sleep(2 * delay_s)
        client.close()
    base, over = phases[0]["statuses"]["200"], phases[-1]["statuses"]
    refused = {status: found for status, found in over.items() if status != "200"}
    return {
        "capacity": capacity,
        "delay_s": delay_s,
        "saturating_per_second": saturating,
        "seconds": seconds,
        "phases": phases,
        "p99_ratio": round(over["200"]["p99_ms"] / base["p99_ms"], 3),
        "throughput_share": round(over["200"]["count"] / seconds / saturating, 3),
        "refused_p99_ms": max((found["p99_ms"] for found in refused.values()), default=None),
        "statuses_beside_200_and_429": sorted(set(over) - {"200", "429"}),
    }


async def beyond_the_gateway(
    folder: Path, connections: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """A closed loop over many connections to an instant engine; then how soon it is well again."""
    found: list[dict[str, Any]] = []
    with gateway(configuration(folder, 256, 0.0), GATEWAY_CORE) as server:
        client = LoadClient("127.0.0.1", server.port)
        request = client.body("/v1/distilled", QUESTION)
        await closed_loop(client, request, 4, 3.0)  # warm up
        idle_ms = 1000 * quantile(await alone(client, request, 50), 0.5)
        for _ in range(rounds):
            async with watching(server) as used:
                outcomes = await closed_loop(client, request, connections, seconds)
            recovery_s = await recovered(client, request, RECOVERED_FACTOR * idle_ms)
            await asyncio.sleep(2.0)
            found.append(
                {
                    **summary(outcomes, seconds),
                    "gateway": asdict(used),
                    "recovery_s": recovery_s,
                    "rss_mib_after": round(server.rss_mib(), 1),
                }
            )
        client.close()
    return {"connections": connections, "seconds": seconds, "idle_ms": idle_ms, "rounds": found}


async def beyond_refusing(folder: Path, rate: float, seconds: float) -> dict[str, Any]:
    """An open loop at more than the gateway's core can even refuse, over new connections."""
    with gateway(configuration(folder, 256, 0.0), GATEWAY_CORE) as server:
        client = LoadClient("127.0.0.1", server.port, timeout_s=20.0)
        request = client.body("/v1/distilled", QUESTION)
        await closed_loop(client, request, 4, 3.0)
        idle_ms = 1000 * quantile(await alone(client, request, 50), 0.5)
        limit_ms = RECOVERED_FACTOR * idle_ms
        async with watching(server) as used:
            probe = await _probe(server.port, limit_ms, seconds)
            outcomes: list[Outcome] = await open_loop(client, request, rate, seconds)
        ended_s = max(o.due_s + o.seconds for o in outcomes) - seconds
        client.close()
        said, _ = await probe.communicate()
        probed = json.loads(said) if probe.returncode == 0 else None
        await asyncio.sleep(2.0)
        result = {
            "offered_per_second": rate,
            "seconds": seconds,
            "idle_ms": idle_ms,
            **summary(outcomes, seconds),
            "gateway": asdict(used),
            "last_answer_s_after_the_end": round(ended_s, 3),
            "another_process_after_the_end": probed,
            "rss_mib_after": round(server.rss_mib(), 1),
        }
    return result


async def _probe(port: int, limit_ms: float, after_s: float) -> asyncio.subprocess.Process:
    """Tells what a process sees that comes when the arrivals end. It runs by then and waits for
    that moment by itself, because the generator is as late as it is busy."""
    program = str(Path(__file__).parent / "probe.py")
    at_s = time.monotonic() + after_s
    told = [str(port), "/v1/distilled", json.dumps(QUESTION), f"{limit_ms:.3f}", f"{at_s:.6f}"]
    return await asyncio.create_subprocess_exec(
        sys.executable, program, *told, f"{PROBED_S}", stdout=asyncio.subprocess.PIPE
    )


async def alone(client: LoadClient, request: bytes, count: int) -> list[float]:
    """Seconds of requests one after another."""
    start = time.perf_counter()
    outcomes = [
        await client.timed(request, start, time.perf_counter() - start) for _ in range(count)
    ]
    return [outcome.seconds for outcome in outcomes]


async def recovered(client: LoadClient, request: bytes, limit_ms: float) -> float | None:
    """Seconds until ten answers in a row are whole and their median is within the limit; None if
    that takes longer than it may."""
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < RECOVERY_S:
        outcomes = [
            await client.timed(request, start, time.perf_counter() - start) for _ in range(10)
        ]
        well = all(outcome.status == 200 for outcome in outcomes)
        if well and 1000 * quantile([o.seconds for o in outcomes], 0.5) <= limit_ms:
            return round(elapsed, 3)
    return None


async def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts, in turn."""
    engine = await beyond_the_engine(
        folder, arguments.capacity, arguments.delay, arguments.seconds, (0.8, 1.0, 1.5, 3.0)
    )
    print(json.dumps({k: v for k, v in engine.items() if k != "phases"}, indent=1))
    best = await beyond_the_gateway(folder, arguments.connections, arguments.seconds, 3)
    print(json.dumps(best, indent=1))
    flood = await beyond_refusing(folder, arguments.flood, arguments.seconds)
    print(json.dumps(flood, indent=1))
    return {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "beyond_the_engine": engine,
        "beyond_the_gateway": best,
        "beyond_refusing": flood,
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--capacity", type=int, default=16)
    parser.add_argument("--delay", type=float, default=0.2)
    parser.add_argument("--connections", type=int, default=1500)
    parser.add_argument("--flood", type=float, default=4000.0)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(measure(arguments, Path(folder)))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
