"""What the gateway costs: against a bare pass-through, the least that keeps a log before it
answers, and LiteLLM's proxy, in one run.

    python bench/gateway.py --litellm /path/to/env/bin/litellm --out bench/results/gateway/cpu.json

Each gateway has one core, nginx with fixed bodies and the load generator share the other. Recipes:
throughput in closed loops (wrk), added latency one request at a time (alternating with direct
ones), added p99 over a 20-ms upstream at several concurrencies, open loops at fixed rates with
answers of 8,440 characters, and Best-of-N's own time beyond its candidates and its scoring.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from load import LoadClient, closed_loop, open_loop, quantile, summary
from processes import Server, awake, free_port, gateway, started, watching
from upstream import CANDIDATES, MODEL, upstream

GATEWAY_CORE, LOAD_CORE = 0, 1
QUESTION = "Where is my parcel, and when will it come?"
PATH = "/v1/chat/completions"
DIRECT, BARE, LEAST, BOND, LITELLM = "direct", "bare", "least", "bondserve", "litellm"
SHORT, LONG = 64, 2110
"""Tokens of an answer: of a sentence or two, and of litellm-bench's 8,440 characters."""
REWARD = """def length(prompts, completions, **kwargs):
    return [float(len(turns[0]["content"])) for turns in completions]
"""


def body_for(system: str) -> dict[str, Any]:
    """The same question to each; ours names the arm of one sample."""
    model = f"{MODEL}:reference" if system == BOND else MODEL
    return {"model": model, "messages": [{"role": "user", "content": QUESTION}]}


@contextmanager
def systems(arguments: argparse.Namespace, nginx: Server) -> Iterator[dict[str, Server]]:
    """All gateways over one upstream, running side by side; one is asked at a time."""
    url = f"http://127.0.0.1:{nginx.port}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = {DIRECT: nginx}
        bare_port = free_port()
        bare = [sys.executable, str(Path(__file__).parent / "bare_gateway.py"), url, str(bare_port)]
        running[BARE] = stack.enter_context(started(bare, bare_port, GATEWAY_CORE))
        least_port = free_port()
        least = [sys.executable, str(Path(__file__).parent / "least_gateway.py"), url]
        least += [str(least_port), str(folder / "least.db")]
        running[LEAST] = stack.enter_context(started(least, least_port, GATEWAY_CORE))
        running[BOND] = stack.enter_context(gateway(_configuration(folder, url), GATEWAY_CORE))
        if arguments.litellm is not None:
            running[LITELLM] = stack.enter_context(_litellm(folder, arguments.litellm, url))
        yield running


def _configuration(folder: Path, url: str) -> dict[str, Any]:
    rewards = folder / "rewards.py"
    rewards.write_text(REWARD)
    return {
        "model": {"name": MODEL},
        "engine": {"type": "vllm", "urls": [url], "timeout_s": 60},
        "scorer": {"type": "function", "function": f"{rewards}:length"},
    }


@contextmanager
def _litellm(folder: Path, program: Path, url: str) -> Iterator[Server]:
    port = free_port()
    upstream_of = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
    document = {"model_list": [{"model_name": MODEL, "litellm_params": upstream_of}]}
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [str(program), "--config", str(file), "--port", str(port), "--host", "127.0.0.1"]
    environ = {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "NO_PROXY": "127.0.0.1"}
    environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    # without keys, as the others here: no request is looked up
    environ |= {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    with started(
        [*command, "--num_workers", "1"],
        port,
        GATEWAY_CORE,
        ready="/health/liveliness",
        environ=environ,
    ) as server:
        yield server


def wrk(server: Server, document: Mapping[str, Any], connections: int, seconds: float) -> float:
    """Requests per second in a closed loop; raises if any failed."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(
            'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n'
            f"wrk.body = {json.dumps(json.dumps(document))}\n"
        )
        script.flush()
        url = f"http://127.0.0.1:{server.port}{PATH}"
        options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s"]
        told = subprocess.run(
            ["taskset", "-c", str(LOAD_CORE), "wrk", *options, "-s", script.name, url],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(told)
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    assert found is not None, told
    return float(found[1])


def throughput(
    running: Mapping[str, Server], connections: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Rounds over all systems in turn; the ratios of their medians, and the medians of the rounds'
    own ratios, which a machine that is now faster and now slower disturbs less."""
    found: dict[str, list[float]] = {system: [] for system in running if system != DIRECT}
    spent_ms: dict[str, list[float]] = {system: [] for system in found}
    for system, server in running.items():
        if system != DIRECT:
            wrk(server, body_for(system), connections, 3)
    for _ in range(rounds):
        for system in found:
            server = running[system]
            before = server.cpu_s()
            rate = wrk(server, body_for(system), connections, seconds)
            found[system].append(rate)
            spent_ms[system].append(round(1000 * (server.cpu_s() - before) / seconds / rate, 4))
    per_core = {system: 1000 / statistics.median(values) for system, values in spent_ms.items()}
    medians = {system: statistics.median(values) for system, values in found.items()}
    others = [system for system in medians if system != BOND]
    ratios = {f"bondserve/{system}": medians[BOND] / medians[system] for system in others}
    return {
        "connections": connections,
        "per_second": found,
        "core_ms_per_request": spent_ms,
        "per_core_second": {system: round(value, 1) for system, value in per_core.items()},
        "per_core_ratios": {
            f"bondserve/{system}": round(per_core[BOND] / value, 3)
            for system, value in per_core.items()
            if system != BOND
        },
        "direct_per_second": wrk(running[DIRECT], body_for(DIRECT), connections, 2),
        "medians": {system: round(value, 1) for system, value in medians.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
        "round_ratios": {
            f"bondserve/{system}": round(
                statistics.median(
                    ours / theirs for ours, theirs in zip(found[BOND], found[system], strict=True)
                ),
                3,
            )
            for system in others
        },
    }


async def added_latency(
    running: Mapping[str, Server], rounds: int = 7, each: int = 25
) -> dict[str, Any]:
    """Milliseconds that each system adds, one request at a time, alternating with direct ones;
    the systems take turns round by round."""
    clients = {s: LoadClient("127.0.0.1", server.port) for s, server in running.items()}
    requests = {s: client.body(PATH, body_for(s)) for s, client in clients.items()}
    systems = [system for system in running if system != DIRECT]
    for system, client in clients.items():
        for _ in range(100):
            await client.ask(requests[system])
    medians: dict[str, list[tuple[float, float]]] = {system: [] for system in systems}
    for _ in range(rounds):
        for system in systems:
            seconds: dict[str, list[float]] = {DIRECT: [], system: []}
            for _ in range(each):
                for one, values in seconds.items():
                    values.append(await _one(clients[one], requests[one]))
            direct, through = (1000 * statistics.median(values) for values in seconds.values())
            medians[system].append((direct, through))
    for client in clients.values():
        client.close()
    added = {s: [through - direct for direct, through in pairs] for s, pairs in medians.items()}
    return {
        "round_medians_ms": {
            system: {
                "direct": [round(direct, 4) for direct, _ in pairs],
                "through": [round(through, 4) for _, through in pairs],
            }
            for system, pairs in medians.items()
        },
        "added_ms": {s: round(statistics.median(values), 3) for s, values in added.items()},
        "added_iqr_ms": {
            s: [round(q, 3) for q in statistics.quantiles(values, n=4)[::2]]
            for s, values in added.items()
        },
    }


async def _one(client: LoadClient, request: bytes) -> float:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    status, body = await client.ask(request)
    if status != 200:
        raise RuntimeError(f"{status}: {body[:500]!r}")
    return loop.time() - started_at


async def best_of_n(running: Mapping[str, Server], repetitions: int = 200) -> dict[str, Any]:
    """Best-of-N's own time: beyond one direct request for the same candidates, and its scoring."""
    ours, direct = (LoadClient("127.0.0.1", running[s].port) for s in (BOND, DIRECT))
    found: dict[str, Any] = {}
    for n in (1, *CANDIDATES):
        message = {"messages": [{"role": "user", "content": QUESTION}]}
        asked = ours.body("/v1/best-of-n", {**message, "best_of": n})
        drawn = direct.body(PATH, {**message, "n": n, "return_token_ids": True})
        beyond: list[float] = []
        overhead: list[float] = []
        scoring: list[float] = []
        for repetition in range(repetitions + 50):
            whole, alone = await _answer(ours, asked), await _answer(direct, drawn)
            if repetition < 50:
                continue
            timings = whole[1]["bond"]["timings"]
            scoring.append(timings["score_ms"])
            overhead.append(timings["overhead_ms"])
            beyond.append(whole[0] - alone[0] - timings["score_ms"])
        found[str(n)] = {
            "own_ms": _spread(beyond),
            "self_reported_overhead_ms": _spread(overhead),
            "score_ms": _spread(scoring),
        }
    ours.close()
    direct.close()
    return found


async def _answer(client: LoadClient, request: bytes) -> tuple[float, dict[str, Any]]:
    """Milliseconds, and the answer's JSON."""
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    status, body = await client.ask(request)
    spent_ms = 1000 * (loop.time() - started_at)
    if status != 200:
        raise RuntimeError(f"{status}: {body[:500]!r}")
    return spent_ms, json.loads(body)


def _spread(values: list[float]) -> dict[str, float]:
    return {f"p{100 * q:g}": round(quantile(values, q), 3) for q in (0.25, 0.5, 0.75, 0.95)}


async def added_p99(running: Mapping[str, Server], seconds: float) -> dict[str, Any]:
    """Closed loops over a slower upstream: what is added to the direct p99."""
    found: dict[str, Any] = {}
    for concurrency in (1, 4, 16, 64):
        at: dict[str, Any] = {}
        for system, server in running.items():
            client = LoadClient("127.0.0.1", server.port)
            request = client.body(PATH, body_for(system))
            await closed_loop(client, request, concurrency, 1.0)
            at[system] = summary(await closed_loop(client, request, concurrency, seconds), seconds)
            client.close()
        direct = at[DIRECT]["statuses"]["200"]["p99_ms"]
        added = {s: round(of["statuses"]["200"]["p99_ms"] - direct, 3) for s, of in at.items()}
        found[str(concurrency)] = {"added_p99_ms": added, "systems": at}
    return found


async def open_loops(
    running: Mapping[str, Server], rates: tuple[float, ...], seconds: float
) -> dict[str, Any]:
    """Fixed rates of long answers; a system's capacity is the highest rate up to which all were
    answered with a p95 of at most 100 ms."""
    found: dict[str, Any] = {}
    for system, server in running.items():
        client = LoadClient("127.0.0.1", server.port, timeout_s=10)
        request = client.body(PATH, body_for(system))
        await closed_loop(client, request, 2, 2.0)
        at: dict[str, Any] = {}
        capacity = 0.0
        for rate in rates:
            async with watching(server) as used:
                outcomes = await open_loop(client, request, rate, seconds)
            told = summary(outcomes, seconds) | {"server": asdict(used)}
            ok = {o.status for o in outcomes} == {200}
            p95 = quantile([o.seconds for o in outcomes], 0.95)
            at[f"{rate:g}"] = told | {"passed": ok and p95 <= 0.1}
            if not at[f"{rate:g}"]["passed"]:
                break
            capacity = rate
        client.close()
        found[system] = {"capacity_per_second": capacity, "rates": at}
    return found


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All recipes."""
    report: dict[str, Any] = {
        "machine": {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "deviation": "nginx and the load generator share a core",
            "cores_kept_awake_for_one_request_at_a_time": arguments.awake,
            "load_average_before": os.getloadavg(),
        },
        "answer_tokens": {"short": SHORT, "long": LONG},
    }
    with upstream(LOAD_CORE, SHORT) as nginx, systems(arguments, nginx) as running:
        report["throughput"] = [
            _said(throughput(running, connections, arguments.seconds, arguments.rounds))
            for connections in (16, 64)
        ]
        # a core that is never idle, as those of the loops above, has no need of it
        with awake((GATEWAY_CORE, LOAD_CORE) if arguments.awake else ()):
            report["added_latency"] = _said(asyncio.run(added_latency(running)))
            report["best_of_n"] = _said(asyncio.run(best_of_n(running)))
    if arguments.quick:
        return report
    with upstream(LOAD_CORE, SHORT, 0.02) as nginx, systems(arguments, nginx) as running:
        slow = asyncio.run(added_p99(running, arguments.seconds))
        report["added_p99"] = slow
        _said({c: at["added_p99_ms"] for c, at in slow.items()})
    with upstream(LOAD_CORE, LONG) as nginx, systems(arguments, nginx) as running:
        rates = (25.0, 50.0, 100.0, 150.0, 200.0, 300.0, 450.0)
        loops = asyncio.run(open_loops(running, rates, arguments.seconds))
        report["open_loops"] = loops
        _said({system: of["capacity_per_second"] for system, of in loops.items()})
    return report


def _said(found: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(found, indent=1), flush=True)
    return found


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--litellm", type=Path, help="the program of LiteLLM's own environment")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="without slow upstream and open loops")
    parser.add_argument(
        "--awake",
        action="store_true",
        help="keep both cores from halting between requests, for virtual machines",
    )
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    report = measure(arguments)
    report["machine"]["load_average_after"] = os.getloadavg()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
