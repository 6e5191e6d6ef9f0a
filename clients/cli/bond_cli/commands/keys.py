"""`bond keys`: makes, lists and revokes API keys in the store of a gateway."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bond_cli.asking import API_KEY_VARIABLE
from bond_cli.failure import CONFIG_EXIT, CommandError, explains_failures
from bond_cli.target import ConfigFile, DataDir, config_of_data

if TYPE_CHECKING:
    from bond_core.store import ApiKey, Store

app = typer.Typer(help="API keys of a gateway, in its store.", no_args_is_help=True)

T = TypeVar("T")

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_KEY = re.compile(r"(?:sk-bond-)?([0-9a-f]{12})(?:-.*)?")
_MOST = 2**31 - 1


class ScopeName(StrEnum):
    """What a key may do."""

    INFER = "infer"
    READ = "read"
    ADMIN = "admin"


PerMinute = Annotated[int | None, typer.Option(min=1, max=_MOST, show_default=False)]


@app.command("create")
@explains_failures
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(help="What it may do; repeat for more.", show_default="infer and read"),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(help="Such as 90d, 12h or 30m.", show_default="never")
    ] = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST, help="Requests at the same time.", show_default=False),
    ] = None,
    log_content: Annotated[
        bool | None,
        typer.Option(
            "--log-content/--no-log-content",
            help="Keep prompts and answers of this key.",
            show_default="the deployment's setting",
        ),
    ] = None,
    train: Annotated[
        bool | None,
        typer.Option(
            "--train/--no-train",
            help="Learn from what this key asks.",
            show_default="the deployment's setting",
        ),
    ] = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key. It goes to stdout, once; what it is goes to stderr."""
    expires_at = None if expires_in is None else time.time() + seconds_of(expires_in)
    names = scope or [ScopeName.INFER, ScopeName.READ]

    async def make(store: "Store") -> "tuple[ApiKey, str]":
        from bond_core.store import KeyLimits, Scope

        return await store.access.create(
            name,
            {Scope(value) for value in names},
            expires_at=expires_at,
            limits=KeyLimits(requests_per_minute, tokens_per_minute, concurrency),
            log_content=log_content,
            train=train,
        )

    key, secret = _in_store(make, config, data_dir)
    sys.stderr.write(f"key {key.id} ({', '.join(sorted(key.scopes))}); it is shown this once:\n")
    sys.stderr.flush()
    typer.echo(secret)


@app.command("adopt")
@explains_failures
def adopt(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Annotated[
        list[ScopeName] | None,
        typer.Option(help="What it may do; repeat for more.", show_default="infer and read"),
    ] = None,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """Put the key in the variable BONDSERVE_API_KEY into the store, unless it is there."""
    secret = os.environ.get(API_KEY_VARIABLE)
    if not secret:
        raise CommandError(
            f"there is no key to adopt: set {API_KEY_VARIABLE}, or let `bond keys create` make one",
            CONFIG_EXIT,
        )
    names = scope or [ScopeName.INFER, ScopeName.READ]

    async def put(store: "Store") -> "tuple[ApiKey, bool]":
        from bond_core.store import Scope

        return await store.access.adopt(name, {Scope(value) for value in names}, secret)

    key, is_new = _in_store(put, config, data_dir)
    refused = key.why_refused(time.time())
    state = "is in the store now" if is_new else "was there before"
    state += f" and {refused}" if refused else ""
    typer.echo(f"key {key.id} ({', '.join(sorted(key.scopes))}) {state}")


@app.command("list")
@explains_failures
def list_keys(config: ConfigFile = None, data_dir: DataDir = None) -> None:
    """List every key that was made, revoked ones too, oldest first."""

    async def read(store: "Store") -> "list[ApiKey]":
        return await store.access.all()

    keys = _in_store(read, config, data_dir)
    if not keys:
        typer.echo("there is no key: the gateway answers everyone who reaches it")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("key", "name", "scopes", "state", "created", "last used", "limits", "keeps"):
        table.add_column(heading, overflow="fold")
    for key in keys:
        table.add_row(*_row(key, time.time()))
    Console().print(table)


@app.command("revoke")
@explains_failures
def revoke(
    key: Annotated[str, typer.Argument(help="Its 12 digits as `list` shows them.")],
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """End a key for good."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise CommandError(f"{key!r} is no key: give the 12 digits that `bond keys list` shows")
    key_id = found[1]

    async def end(store: "Store") -> bool:
        return await store.access.revoke(key_id)

    if not _in_store(end, config, data_dir):
        raise CommandError(
            f"there is no key {key_id} to revoke: it never was, or was revoked before"
        )
    typer.echo(f"key {key_id} is revoked")


def seconds_of(text: str) -> int:
    """The seconds of a duration such as `90d`. Raises `CommandError` with exit code 2."""
    found = _DURATION.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise CommandError(
            f"--expires-in {text!r} is no duration: give a number and s, m, h, d or w, such as 90d",
            CONFIG_EXIT,
        )
    return int(found[1]) * _SECONDS[found[2]]


def _in_store(work: "Callable[[Store], Awaitable[T]]", config: ConfigFile, data_dir: DataDir) -> T:
    if config is None and data_dir is None:
        raise CommandError(
            "whose keys? Name the gateway's configuration with --config, or its folder with "
            "--data-dir",
            CONFIG_EXIT,
        )
    resolved = config_of_data(config, data_dir)

    async def run() -> T:
        from bond_core.store import open_store

        store = await open_store(
            resolved.store_url,
            resolved.store.durability,
            commit_timeout_s=resolved.store.commit_timeout_s,
        )
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def _row(key: "ApiKey", now: float) -> list[str]:
    limits = key.limits
    shown = [
        (limits.requests_per_minute, "requests/min"),
        (limits.tokens_per_minute, "tokens/min"),
        (limits.concurrency, "at once"),
    ]
    consent = [
        ("" if key.log_content is None else ("content" if key.log_content else "no content")),
        ("" if key.train is None else ("trains" if key.train else "never trains")),
    ]
    return [
        key.id,
        key.name,
        ", ".join(sorted(key.scopes)),
        key.why_refused(now) or (f"until {_day(key.expires_at)}" if key.expires_at else "valid"),
        _day(key.created_at),
        "never" if key.last_used_at is None else _day(key.last_used_at),
        ", ".join(f"{number} {what}" for number, what in shown if number is not None) or "none",
        ", ".join(part for part in consent if part) or "as deployed",
    ]


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
