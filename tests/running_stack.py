"""The stack of docker/ as tests use it: users on its port, and what its database holds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from docker_engine import Project, docker
from stack_traffic import Traffic


@asynccontextmanager
async def users(project: Project) -> AsyncIterator[Traffic]:
    """Users who ask all the time, and end after the requests that run."""
    url = f"http://127.0.0.1:{project.settings['BONDSERVE_PORT']}"
    traffic = Traffic(url, project.settings["BONDSERVE_API_KEY"], "demo")
    running = asyncio.create_task(traffic.run())
    try:
        yield traffic
    finally:
        traffic.stop()
        await running


def asked(project: Project, query: str) -> set[str]:
    """The lines that PostgreSQL itself answers to a query."""
    password = f"PGPASSWORD={project.settings['POSTGRES_PASSWORD']}"
    rows = docker(
        "exec", "--env", password, project.container("postgres"),
        "psql", "--username=bond", "--dbname=bond", "--no-align", "--tuples-only",
        f"--command={query}",
    )  # fmt: skip
    return set(rows.stdout.split())


def kept(project: Project) -> set[str]:
    """Ids of the answers in the database; they have no prefix there."""
    return asked(project, "SELECT c.id FROM completions c WHERE c.status = 'ok'")


def client_of(project: Project) -> httpx.Client:
    """A client of the published port, with the first key."""
    return httpx.Client(
        base_url=f"http://127.0.0.1:{project.settings['BONDSERVE_PORT']}",
        headers={"authorization": f"Bearer {project.settings['BONDSERVE_API_KEY']}"},
        timeout=60,
        trust_env=False,
    )
