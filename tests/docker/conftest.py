"""One stack for all tests that need it: it takes two minutes to start."""

import base64
import secrets
from collections.abc import Iterator

import pytest
from docker_engine import FILES, ROOT, Project, free_port


@pytest.fixture(scope="session")
def stack() -> Iterator[Project]:
    """The stack on a CPU, as it is shipped, without Grafana."""
    random = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip("=")
    settings = {
        "BONDSERVE_PORT": str(free_port()),
        "BONDSERVE_SUBNET": "10.213.65",
        "BONDSERVE_API_KEY": f"sk-bond-{secrets.token_hex(6)}-{random}",
        "POSTGRES_PASSWORD": secrets.token_hex(24),
        "GRAFANA_PASSWORD": secrets.token_hex(16),
    }
    files = [FILES / "compose.stack.yaml", FILES / "compose.cpu.yaml"]
    project = Project([*files, ROOT / "tests/docker/compose.test.yaml"], settings)
    try:
        project.compose("up", "--detach", "--no-build", "proxy", "trainer", "prometheus")
        project.until_healthy("gateway-a", "gateway-b", "trainer", "proxy", "prometheus")
        yield project
    finally:
        project.close()
