"""Compose itself reads every deployment, and says what is missing."""

from pathlib import Path

import pytest
import yaml
from docker_engine import FILES, docker

pytestmark = pytest.mark.docker

MODELS = {"policy", "reward"}
STACK = {
    "proxy", "gateway-a", "gateway-b", "keys", "trainer", "postgres", "prometheus", "grafana",
} | MODELS  # fmt: skip
GIVEN = {"POSTGRES_PASSWORD": "p", "BONDSERVE_API_KEY": "k", "GRAFANA_PASSWORD": "g"}


def compose(tmp_path: Path, files: list[str], given: dict[str, str]) -> tuple[int, str, str]:
    """Exit code and output of `docker compose config`, with no other settings than these."""
    settings = tmp_path / "settings.env"
    settings.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    named = [word for file in files for word in ("-f", str(FILES / file))]
    ran = docker("compose", "--env-file", str(settings), *named, "config", check=False)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("files", "services"),
    [
        (["compose.yaml"], {"demo"}),
        (["compose.stack.yaml", "compose.cpu.yaml"], STACK),
        (["compose.stack.yaml", "compose.gpu.yaml"], STACK),
    ],
)
def test_each_deployment_is_understood(
    tmp_path: Path, files: list[str], services: set[str]
) -> None:
    code, said, complaint = compose(tmp_path, files, GIVEN if services != {"demo"} else {})
    assert code == 0, complaint
    # some releases of Compose list what only a profile starts, some do not
    assert set(yaml.safe_load(said)["services"]) - {"tools"} == services


@pytest.mark.parametrize("missing", GIVEN)
def test_without_a_secret_the_stack_does_not_start(tmp_path: Path, missing: str) -> None:
    given = {name: value for name, value in GIVEN.items() if name != missing}
    for models in ("cpu", "gpu"):
        files = ["compose.stack.yaml", f"compose.{models}.yaml"]
        code, _, complaint = compose(tmp_path, files, given)
        assert code != 0
        assert "docker/new-secrets" in complaint
