"""`bond keys`: on the store of a configuration, beside a gateway or before the first one."""

import asyncio
import hashlib
import io
import json
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from rich.console import Console
from running_gateway import MakeConfig, Run, make_config, rewards_file, run  # noqa: F401
from typer.testing import CliRunner

from bond_cli.commands.keys import seconds_of
from bond_cli.commands.keys_table import keys_table
from bond_cli.failure import CommandError
from bond_cli.main import app
from bond_core.store import open_store

HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "bond.yaml"
    document: dict[str, Any] = {
        "model": {"path": "no-model"},
        "engine": {"type": "fake"},
        "scorer": {"type": "function", "function": "rewards.py:length"},
        "data_dir": "data",
    }
    file.write_text(yaml.safe_dump(document))
    return file


def bond(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["keys", *map(str, arguments)], env={"COLUMNS": "240"})


def rows(config_file: Path) -> list[dict[str, Any]]:
    connection = sqlite3.connect(config_file.parent / "data" / "bond.db")
    connection.row_factory = sqlite3.Row
    try:
        found = connection.execute("SELECT * FROM api_keys ORDER BY created_at").fetchall()
        return [dict(row) for row in found]
    finally:
        connection.close()


def test_a_key_is_made_shown_once_listed_and_revoked(config_file: Path) -> None:
    where = ("--config", config_file)
    before = time.time()
    made = bond(
        "create", "tenant 7", "--scope", "infer", "--scope", "admin", "--expires-in", "2h",
        "--requests-per-minute", "600", "--tokens-per-minute", "200000", "--concurrency", "8",
        "--no-train", "--log-content", *where,
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    found = re.fullmatch(r"sk-bond-([0-9a-f]{12})-[\w-]{43}", secret)
    assert found
    assert f"key {found[1]} (admin, infer)" in made.stderr
    [row] = rows(config_file)
    assert (row["name"], row["scopes"]) == ("tenant 7", '["admin","infer"]')
    assert (row["requests_per_minute"], row["tokens_per_minute"], row["concurrency"]) == (
        600, 200_000, 8,
    )  # fmt: skip
    assert (row["log_content"], row["train"]) == (1, 0)
    assert 0 <= row["expires_at"] - before - 7200 < 60

    plain = bond("create", "plain", *where)
    assert plain.exit_code == 0
    assert [r["scopes"] for r in rows(config_file)][1] == '["infer","read"]'
    listed = bond("list", *where)
    assert listed.exit_code == 0
    for shown in (
        found[1], "tenant 7", "admin, infer", "600 requests/min, 200000 tokens/min, 8 at once",
        "content, never trains", "valid", "as deployed", "never",
    ):  # fmt: skip
        assert shown in listed.stdout
    assert secret[-43:] not in listed.stdout

    ended = bond("revoke", secret, *where)  # the whole key does as well
    assert (ended.exit_code, ended.stdout) == (0, f"key {found[1]} is revoked\n")
    assert "was revoked" in bond("list", *where).stdout
    again = bond("revoke", found[1], *where)
    assert again.exit_code == 1
    assert again.stderr.startswith(f"error: there is no key {found[1]} to revoke")


def test_mistakes_are_told(config_file: Path) -> None:
    where = ("--config", config_file)
    for command in (("list",), ("revoke", "0" * 12)):
        missing = bond(*command, *where)
        assert (missing.exit_code, missing.stdout) == (2, "")
        assert missing.stderr.startswith("error: there is no database at ")
    (config_file.parent / "data").mkdir()
    asyncio.run(an_empty_store(config_file.parent / "data"))
    empty = bond("list", *where)
    assert "there is no key" in empty.stdout
    assert bond("list", "--json", *where).output == ""
    for arguments, code, says in (
        (("create", "a"), 2, "--config"),
        (("create", " ", *where), 1, "needs a name"),
        (("create", "a", "--expires-in", "soon", *where), 2, "90d"),
        (("create", "a", "--scope", "all", *where), 2, "infer"),
        (("create", "a", "--concurrency", "0", *where), 2, "concurrency"),
        (("create", "a", "--tokens-per-minute", 2**31, *where), 2, "at most 2147483647"),
        (("revoke", "nothing", *where), 1, "12 digits"),
    ):
        ran = bond(*arguments)
        assert ran.exit_code == code, ran.output
        assert says in ran.stderr
        assert "Traceback" not in ran.output
    assert rows(config_file) == []


async def an_empty_store(data_dir: Path) -> None:
    await (await open_store(f"sqlite+aiosqlite:///{data_dir / 'bond.db'}")).close()


def test_a_folder_that_is_not_there_is_no_deployment(tmp_path: Path) -> None:
    typo = tmp_path / "bond-dtaa"
    for arguments in (("create", "a"), ("list",), ("revoke", "0" * 12)):
        ran = bond(*arguments, "--data-dir", typo)
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert ran.stderr.startswith(f"error: there is no database at {typo / 'bond.db'}")
        assert not typo.exists()
    typo.mkdir()
    assert bond("list", "--data-dir", typo).exit_code == 2
    assert list(typo.iterdir()) == []


def test_a_first_key_before_the_first_start_says_that_it_made_the_database(
    config_file: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    for where, file in (
        (("--data-dir", there), there / "bond.db"),
        (("--config", config_file), config_file.parent / "data" / "bond.db"),
    ):
        made = bond("create", "first", *where)
        assert made.exit_code == 0, made.output
        assert re.fullmatch(r"sk-bond-[0-9a-f]{12}-[\w-]{43}\n", made.stdout)
        assert made.stderr.startswith(f"there was no database at {file}: made one\n")
        assert file.is_file()
        assert "no database" not in bond("create", "second", *where).stderr


@pytest.mark.parametrize("columns", ["60", "80"])
def test_ids_are_whole_however_narrow_it_is(config_file: Path, columns: str) -> None:
    where = ("--config", config_file)
    limits = ("--requests-per-minute", "600", "--tokens-per-minute", "200000", "--no-train")
    made = [bond("create", f"tenant {n} of the north", *limits, *where) for n in range(2)]
    ids = [ran.stdout.split("-")[2] for ran in made]
    runner = CliRunner()
    piped = runner.invoke(
        app, ["keys", "list", *map(str, where)], env={"COLUMNS": columns}
    ).stdout.splitlines()
    lines = [line for line in piped if "tenant" in line]
    assert [line.split()[0] for line in lines] == ids
    assert all("600 requests/min, 200000 tokens/min" in line for line in lines)
    file = io.StringIO()
    rows = [[key_id, *[f"cell {n} of a long row" for n in range(7)]] for key_id in ids]
    Console(file=file, width=int(columns), force_terminal=True, color_system=None).print(
        keys_table(rows)
    )
    shown = file.getvalue()
    assert all(shown.count(key_id) == 1 for key_id in ids)
    assert max(map(len, shown.splitlines())) <= int(columns)


def test_the_list_is_told_to_programs_line_by_line(config_file: Path) -> None:
    where = ("--config", config_file)
    first = bond(
        "create", "a", "--scope", "read", "--expires-in", "2h", "--concurrency", "8", "--no-train",
        *where,
    )  # fmt: skip
    second = bond("create", "b", *where)
    bond("revoke", second.stdout.strip(), *where)
    one, two = [json.loads(line) for line in bond("list", "--json", *where).stdout.splitlines()]
    [row, revoked] = rows(config_file)
    assert one == {
        "id": first.stdout.split("-")[2], "name": "a", "scopes": ["read"], "valid": True,
        "why_refused": None, "created_at": row["created_at"], "expires_at": row["expires_at"],
        "revoked_at": None, "last_used_at": None, "requests_per_minute": None,
        "tokens_per_minute": None, "concurrency": 8, "log_content": None, "train": False,
    }  # fmt: skip
    assert (two["name"], two["valid"], two["why_refused"]) == ("b", False, "was revoked")
    assert two["revoked_at"] == revoked["revoked_at"] > 0


def test_the_names_of_options_are_whole_on_80_columns() -> None:
    told = CliRunner().invoke(app, ["keys", "create", "--help"], env={"COLUMNS": "80"}).stdout
    assert "…" not in told
    for name in ("--requests-per-minute", "--tokens-per-minute", "--no-log-content"):
        assert f" {name} " in told


def test_durations() -> None:
    assert [seconds_of(text) for text in ("5s", "3m", "2h", "90d", "1w")] == [
        5, 180, 7200, 7_776_000, 604_800,
    ]  # fmt: skip
    for wrong in ("", "d", "0d", "1.5h", "-1d", "10", "1 d", "١d"):
        with pytest.raises(CommandError, match="no duration"):
            seconds_of(wrong)


async def test_a_running_gateway_takes_note(
    run: Run,  # noqa: F811
    make_config: MakeConfig,  # noqa: F811
    config_file: Path,
) -> None:
    async with run(make_config(access={"refresh_s": 0.05})) as running:
        where = ("--config", config_file)  # the same data folder
        secret = (await asyncio.to_thread(bond, "create", "shop", *where)).stdout.strip()
        headers = {"authorization": f"Bearer {secret}"}

        async def until(code: int, headers: dict[str, str]) -> None:
            for _ in range(6000):
                response = await running.client.post("/v1/distilled", json=HI, headers=headers)
                if response.status_code == code:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError(f"never {code}")

        await until(401, {})
        await until(200, headers)
        assert (await asyncio.to_thread(bond, "revoke", secret, *where)).exit_code == 0
        await until(401, headers)


def test_a_key_made_elsewhere_is_adopted_once(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--config", config_file)
    secret = f"sk-bond-0123456789ab-{'x' * 43}"
    without = bond("adopt", "first", *where)
    assert without.exit_code == 2
    assert "BONDSERVE_API_KEY" in without.stderr

    monkeypatch.setenv("BONDSERVE_API_KEY", secret)
    first = bond("adopt", "first", "--scope", "admin", "--scope", "infer", *where)
    assert (first.exit_code, first.stdout) == (
        0, "key 0123456789ab (admin, infer) is in the store now\n",
    )  # fmt: skip
    [row] = rows(config_file)
    assert (row["name"], row["scopes"]) == ("first", '["admin","infer"]')
    assert row["secret_sha256"] == hashlib.sha256(secret.encode()).hexdigest()
    again = bond("adopt", "second", *where)
    assert (again.exit_code, again.stdout) == (
        0, "key 0123456789ab (admin, infer) was there before\n",
    )  # fmt: skip
    assert bond("revoke", secret, *where).exit_code == 0
    assert bond("adopt", "first", *where).stdout.endswith("was there before and was revoked\n")
    assert len(rows(config_file)) == 1

    for text, says in ((secret[:-1] + "y", "another key has the id"), ("sk-bond-1", "is no key")):
        monkeypatch.setenv("BONDSERVE_API_KEY", text)
        wrong = bond("adopt", "first", *where)
        assert wrong.exit_code == 1
        assert says in wrong.stderr
        assert text not in wrong.output
