"""`bond keys`: on the store of a configuration, beside a gateway or before the first one."""

import asyncio
import hashlib
import re
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from running_gateway import MakeConfig, Run, make_config, rewards_file, run  # noqa: F401
from typer.testing import CliRunner

from bond_cli.commands.keys import seconds_of
from bond_cli.failure import CommandError
from bond_cli.main import app

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
    empty = bond("list", *where)
    assert "there is no key" in empty.stdout
    for arguments, code, says in (
        (("create", "a"), 2, "--config"),
        (("create", " ", *where), 1, "needs a name"),
        (("create", "a", "--expires-in", "soon", *where), 2, "90d"),
        (("create", "a", "--scope", "all", *where), 2, "infer"),
        (("create", "a", "--concurrency", "0", *where), 2, "concurrency"),
        (("revoke", "nothing", *where), 1, "12 digits"),
    ):
        ran = bond(*arguments)
        assert ran.exit_code == code, ran.output
        assert says in ran.stderr
        assert "Traceback" not in ran.output
    assert rows(config_file) == []


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
            for _ in range(400):
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
