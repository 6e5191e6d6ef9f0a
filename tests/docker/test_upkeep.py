"""docs/docker.md, "Backup" to "Rolling back": by the images and commands that it names."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from docker_engine import Project, docker, image, inspect, until
from running_stack import asked, client_of, kept, users
from stack_traffic import WORKERS, Account

from bond_core.store.migrate import head_revision

pytestmark = [pytest.mark.docker, pytest.mark.timeout(1500)]

NEXT = "0.1.0-next"
MIGRATIONS = "/app/lib/python3.11/site-packages/bond_core/store/migrations/versions"
CONFIG = "--config=/etc/bondserve/bond.yaml"
GATEWAYS = ("gateway-a", "gateway-b")


@pytest.fixture(scope="module")
def next_release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Images of a release that has one migration more; its tag."""
    context = tmp_path_factory.mktemp("next")
    text = (Path(__file__).parent / "next_release.py").read_text()
    (context / "next.py").write_text(text.replace("REVISION", head_revision()))
    names = ("gateway", "trainer")
    for name in names:
        (context / "Dockerfile").write_text(
            f"FROM {image(name)}\nCOPY next.py {MIGRATIONS}/later_9999.py\n"
        )
        docker("build", "--quiet", "--tag", f"bondserve/{name}:{NEXT}", str(context))
    yield NEXT
    for name in names:
        docker("image", "rm", "--force", f"bondserve/{name}:{NEXT}", check=False)


@pytest.fixture(scope="module")
def served(stack: Project) -> str:
    """A policy version that is active."""
    version = "v0001"
    docker(
        "exec", "--env", "PYTHONPATH=/tests", stack.container("trainer"),
        "python", "/tests/docker/publish_version.py", version,
    )  # fmt: skip
    until(f"{version} is served", lambda: policy_served(stack) == version, 120)
    return version


def policy_served(project: Project) -> str:
    body = {"messages": [{"role": "user", "content": "Where is my parcel?"}]}
    with client_of(project) as client:
        response = client.post("/v1/distilled", json=body).raise_for_status()
    return response.headers["x-bond-adapter"]


def revision(project: Project) -> set[str]:
    return asked(project, "SELECT version_num FROM alembic_version")


def tools(project: Project, *arguments: str, check: bool = True) -> tuple[int, str]:
    """One command in the container that is there for it: exit code and what it said."""
    ran = project.compose("run", "--rm", "--no-deps", "-T", "tools", *arguments, check=check)
    return ran.returncode, ran.stdout + ran.stderr


async def changed(project: Project, service: str, version: str) -> None:
    """The service in the images of a release, with no other touched."""
    project.settings["BONDSERVE_VERSION"] = version
    await asyncio.to_thread(project.compose, "up", "--detach", "--no-deps", "--no-build", service)
    await asyncio.to_thread(project.until_healthy, service)
    assert inspect(project.container(service))["Config"]["Image"].endswith(f":{version}")


async def one_after_the_other(project: Project, version: str) -> Account:
    """Both gateways and the trainer in a release's images, under traffic; what users were told."""
    async with users(project) as traffic:
        account = traffic.account
        assert await traffic.more(20, 90), account.failures[-5:]
        for service in (*GATEWAYS, "trainer"):
            await changed(project, service, version)
            assert await traffic.more(20, 90), account.failures[-5:]
    return account


def assert_kept(project: Project, account: Account) -> None:
    told = {id.removeprefix("chatcmpl-") for id in account.ids}
    assert told - kept(project) == set()


async def test_an_upgrade_with_a_migration_fails_no_request(
    stack: Project, served: str, next_release: str
) -> None:
    assert revision(stack) == {head_revision()}
    account = await one_after_the_other(stack, next_release)
    assert account.failures == []
    assert_kept(stack, account)
    assert revision(stack) == {"9999"}
    assert policy_served(stack) == served
    report = f"{len(account.ids)} answers during the upgrade, none failed"
    print(f"\n{report}")  # noqa: T201


async def test_the_release_is_rolled_back(stack: Project, served: str) -> None:
    """Follows the upgrade. An old gateway says what to do; once the tables are back, it starts."""
    before = kept(stack)
    stack.settings["BONDSERVE_VERSION"] = "0.1.0"
    stack.compose("up", "--detach", "--no-deps", "--no-build", "gateway-a")
    until("it refuses", lambda: f"db downgrade {head_revision()}" in stack.logs("gateway-a"), 60)
    assert policy_served(stack) == served  # by the other one
    stack.settings["BONDSERVE_VERSION"] = NEXT
    code, said = tools(stack, "db", "downgrade", head_revision(), CONFIG, check=False)
    assert (code, "stop every gateway and trainer" in said) == (1, True), said
    stack.compose("stop", *GATEWAYS, "trainer")
    _, said = tools(stack, "db", "downgrade", head_revision(), CONFIG)
    assert f"revision 9999 before, {head_revision()} now" in said
    stack.settings["BONDSERVE_VERSION"] = "0.1.0"
    stack.compose("up", "--detach", "--no-deps", "--no-build", *GATEWAYS, "trainer")
    stack.until_healthy(*GATEWAYS, "trainer")
    assert revision(stack) == {head_revision()}
    assert before <= kept(stack)
    assert policy_served(stack) == served


async def test_a_backup_brings_back_every_row_and_the_version(
    stack: Project, served: str, tmp_path: Path
) -> None:
    archive = tmp_path / "backup.tar"
    async with users(stack) as traffic:
        account = traffic.account
        assert await traffic.more(30, 90), account.failures[-5:]
        told = Account(dict(account.ids))
        said = (await asyncio.to_thread(tools, stack, "db", "backup", "/backups/one", CONFIG))[1]
        assert "1 adapters" in said
        assert await traffic.more(WORKERS, 90)
    assert account.failures == []
    with archive.open("wb") as file:
        through_tar(stack, "-c", file, None)
    stack.compose("down", "--volumes", "--timeout", "30")
    volumes = docker("volume", "ls", "--quiet", "--filter", f"name={stack.name}").stdout
    assert volumes == ""

    stack.compose("up", "--detach", "postgres")
    until("the database is there", lambda: stack.health("postgres") == "healthy", 60)
    with archive.open("rb") as file:
        through_tar(stack, "-x", None, file)
    assert "1 adapters" in tools(stack, "db", "restore", "/backups/one", CONFIG)[1]
    assert tools(stack, "db", "status", CONFIG)[0] == 0
    stack.compose("up", "--detach", "--no-build", "proxy", "trainer", "prometheus")
    stack.until_healthy(*GATEWAYS, "trainer")
    until(f"{served} is served again", lambda: policy_served(stack) == served, 60)
    assert_kept(stack, told)
    code, said = tools(stack, "db", "restore", "/backups/one", CONFIG, check=False)
    assert code != 0
    assert "would overwrite" in said


def through_tar(project: Project, way: str, to: IO[bytes] | None, given: IO[bytes] | None) -> None:
    """The backup through a pipe, out of its volume or into it."""
    named = [word for file in project.files for word in ("-f", str(file))]
    words = [
        "run",
        "--rm",
        "--no-deps",
        "-T",
        "--entrypoint",
        "tar",
        "tools",
        "-C",
        "/backups",
        way,
    ]
    if way == "-c":
        words.append("one")
    ran = subprocess.run(
        ["docker", "compose", *named, *words],
        stdout=to,
        stdin=given,
        stderr=subprocess.PIPE,
        env={**os.environ, **project.environ},
        check=False,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr.decode()
