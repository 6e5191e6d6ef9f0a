"""`bond db`: what the operations page tells to type, on a deployment's files."""

import asyncio
import re
from pathlib import Path

import pytest
from killed_gateway import write_config
from published_adapters import challenger, publish
from running_gateway import Run, until_active
from store_contents import verdict
from typer.testing import CliRunner

from bond_cli.commands.db import app as db
from bond_cli.main import app
from bond_core.adapters import adapter_path
from bond_core.config import load_config
from bond_core.store.migrate import head_revision

DOCS = Path(__file__).resolve().parents[2] / "docs"


def bond(*arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = CliRunner().invoke(app, ["db", *map(str, arguments)], env={"COLUMNS": "240"})
    return done.exit_code, done.stdout, done.stderr


async def off_the_loop(*arguments: object) -> tuple[int, str, str]:
    """The same from a test that has a loop: the command makes its own."""
    return await asyncio.to_thread(bond, *arguments)


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    """A configuration file over SQLite, `data` beside it."""
    return write_config(tmp_path, f"sqlite:///{tmp_path / 'data' / 'bond.db'}")


async def answered(run: Run, file: Path) -> None:
    """Let a gateway promote a version and answer once."""
    config = load_config(file)
    async with run(config) as running:
        path = await publish(config, "v0001")
        await running.gateway.store.policies.insert(challenger("v0001", path, **verdict()))
        await until_active(running, "v0001")
        assert (await running.post("/v1/distilled")).status_code == 200


async def test_backup_loss_and_restore(run: Run, deployment: Path, tmp_path: Path) -> None:
    await answered(run, deployment)
    where = ("--config", deployment)
    head = head_revision()
    code, said, _ = await off_the_loop("backup", tmp_path / "backup", *where)
    assert (code, said) == (
        0,
        f"{tmp_path / 'backup'}: sqlite at revision {head}, 1 adapters, no checkpoint\n",
    )
    code, _, why = await off_the_loop("restore", tmp_path / "backup", *where)
    assert code == 2
    assert "would overwrite" in why
    (tmp_path / "data").rename(tmp_path / "lost")
    code, said, _ = await off_the_loop("restore", tmp_path / "backup", *where)
    assert code == 0
    assert re.search(r"1 adapters, no checkpoint, and the database of 2\d{3}-\d\d-\d\d ", said)
    assert (await off_the_loop("status", *where))[0] == 0
    async with run(load_config(deployment)) as running:
        assert (await running.post("/v1/distilled")).headers["x-bond-adapter"] == "v0001"


async def test_status_names_the_adapter_that_lacks(run: Run, deployment: Path) -> None:
    await answered(run, deployment)
    weights = adapter_path(load_config(deployment).adapters_dir, "v0001")
    (weights / "adapter_model.safetensors").unlink()
    code, said, why = await off_the_loop("status", "--config", deployment)
    assert code == 1
    assert "adapter_model.safetensors missing" in said
    assert "v0001 cannot be served: put the adapters back" in why


def test_a_deployment_has_to_be_named_and_to_be_there(deployment: Path, tmp_path: Path) -> None:
    assert bond("status")[0] == 2
    code, _, why = bond("status", "--config", deployment)
    assert (code, "there is no database at" in why) == (2, True)
    assert not (tmp_path / "data").exists()
    code, _, why = bond("restore", tmp_path, "--config", deployment)
    assert (code, "is no finished backup" in why) == (2, True)


def test_every_subcommand_is_on_both_pages() -> None:
    names = {str(command.name) for command in db.registered_commands}
    assert names == {"backup", "restore", "status", "upgrade", "downgrade"}
    for page in ("operations.md", "cli.md"):
        assert names == set(re.findall(r"bond db (\w+)", (DOCS / page).read_text("utf-8"))), page
