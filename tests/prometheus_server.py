"""A Prometheus to ask: its HTTP API, and one of our own over gateways that run.

    python tests/prometheus_server.py http://localhost:9090

asks every query of the dashboard of a Prometheus that runs elsewhere, in compose say.
"""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from watching_files import PROMETHEUS, Query, panel_queries


@dataclass(frozen=True, slots=True)
class PrometheusServer:
    """The HTTP API of a Prometheus."""

    client: httpx.AsyncClient

    async def ask(self, query: Query, window_s: float = 600.0) -> list[dict[str, Any]]:
        """The series of a query, as a panel gets them. Raises `AssertionError` for an error."""
        now = time.time()
        asked: dict[str, str | float] = {"query": query.expr}
        if query.instant:
            path = "/api/v1/query"
        else:
            path, asked = "/api/v1/query_range", {
                **asked, "start": now - window_s, "end": now, "step": 5,
            }  # fmt: skip
        answer = (await self.client.post(path, data=asked)).json()
        assert answer["status"] == "success", f"{query.where}: {answer}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    async def targets(self) -> dict[str, str]:
        """The health of every target, by its address."""
        answer = (await self.client.get("/api/v1/targets")).json()
        return {t["labels"]["instance"]: t["health"] for t in answer["data"]["activeTargets"]}

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health."""
        answer = (await self.client.get("/api/v1/rules")).json()
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


async def empty_panel_queries(server: PrometheusServer) -> set[str]:
    """Ask every query of the dashboard; returns where those without an answer stand.

    Raises `AssertionError` if one is an error, or names its series by a label that they lack.
    """
    empty: set[str] = set()
    for query in panel_queries("15s"):
        series = await server.ask(query)
        for label in re.findall(r"{{(\w+)}}", query.legend):
            assert all(label in one["metric"] for one in series), f"{query.where}: no {label}"
        if not any(_figures(one) for one in series):
            empty.add(query.where)
    return empty


def _figures(series: dict[str, Any]) -> list[str]:
    points = series.get("values") or [series["value"]]
    return [value for _, value in points if value != "NaN"]


@asynccontextmanager
async def prometheus_over(
    folder: Path, targets: Sequence[str], port: int
) -> AsyncIterator[PrometheusServer]:
    """The scrape configuration of the repository on these gateways, every half second."""
    process = _start(folder, targets, port)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            await _ready(client)
            yield PrometheusServer(client)
    finally:
        process.terminate()
        process.wait(30)


def _start(folder: Path, targets: Sequence[str], port: int) -> subprocess.Popen[bytes]:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["rule_files"] = [str(PROMETHEUS / "rules.yml")]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": list(targets) if job["job_name"] == "gateway" else []}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("w") as log:
        return subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )


async def _ready(client: httpx.AsyncClient) -> None:
    for _ in range(600):
        try:
            if (await client.get("/-/ready")).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("Prometheus is not ready after a minute")


async def _main(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        empty = await empty_panel_queries(PrometheusServer(client))
    sys.stdout.write(f"{len(panel_queries())} queries, without figures: {sorted(empty)}\n")


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
