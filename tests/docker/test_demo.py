"""One command, and nothing set: both arms, a training loop, metrics, and what to try next."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from docker_engine import FILES, Project, docker, free_port, inspect, until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

QUESTION = {"messages": [{"role": "user", "content": "Where is my parcel?"}]}


@pytest.fixture(scope="module")
def demo() -> Iterator[tuple[Project, httpx.Client]]:
    port = free_port()
    project = Project([FILES / "compose.yaml"], {"BONDSERVE_PORT": str(port)})
    try:
        project.compose("up", "--detach", "--no-build")
        project.until_healthy("demo")
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield project, client
    finally:
        project.close()


def test_it_is_confined_and_bound_to_this_machine(demo: tuple[Project, httpx.Client]) -> None:
    host = inspect(demo[0].container("demo"))["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["Privileged"]
    [[binding]] = host["PortBindings"].values()
    assert binding["HostIp"] == "127.0.0.1"


def test_both_arms_answer(demo: tuple[Project, httpx.Client]) -> None:
    _, client = demo
    compared = client.post("/v1/compare", json=QUESTION).raise_for_status().json()
    arms = {arm["arm"]: arm for arm in compared["arms"]}
    assert set(arms) == {"bon", "distilled"}
    assert (arms["bon"]["best_of"], arms["distilled"]["best_of"]) == (8, 1)
    assert all(arm["text"] for arm in arms.values())
    assert all(isinstance(arm["score"], float) for arm in arms.values())
    assert arms["bon"]["tokens"] > arms["distilled"]["tokens"]


def test_it_trains_serves_users_and_counts_both(demo: tuple[Project, httpx.Client]) -> None:
    _, client = demo

    def run() -> dict[str, Any]:
        return client.get("/v1/training").raise_for_status().json()["run"] or {}

    until("the trainer takes steps", lambda: run().get("step", 0) > 0, 420)
    assert run()["state"] != "failed"
    assert not run()["stale"]
    metrics = client.get("/metrics").raise_for_status().text
    ok = dict(re.findall(r'^bond_requests_total\{arm="(\w+)",status="ok"\} (\S+)', metrics, re.M))
    assert float(ok["bon"]) > 0
    assert float(ok["distilled"]) > 0


def test_it_says_what_to_try(demo: tuple[Project, httpx.Client]) -> None:
    project, client = demo
    said = project.logs("demo")
    url = f"http://localhost:{client.base_url.port}"
    assert f"bondserve answers on {url}\n" in said
    for path in ("/v1/compare", "/v1/chat/completions", "/v1/training", "/v1/policies", "/metrics"):
        assert f"curl -s {url}{path}" in said
    asked = re.findall(rf"curl -s {url}(\S+)$", said, re.M)
    assert all(client.get(path).status_code == 200 for path in asked)
    assert len(asked) == 3


def test_it_ends_with_a_report(demo: tuple[Project, httpx.Client]) -> None:
    project, _ = demo
    container = project.container("demo")
    docker("stop", "--time", "180", container)
    assert inspect(container)["State"]["ExitCode"] == 0
    said = project.logs("demo")
    assert re.search(r"none of \d+ requests failed", said)
    assert "final evaluation" in said
    listed = docker("cp", f"{container}:/data/results/report.json", "-")
    assert "report.json" in listed.stdout
