"""`bond keys`: makes, lists and revokes API keys in the store of a gateway."""

import asyncio
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from bond_cli.asking import API_KEY_VARIABLE
from bond_cli.commands.keys_table import PIPE_WIDTH, json_line, key_row, keys_table
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


# A bound in the help would take the width that the options' names need on 80 columns.
PerMinute = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="None is no limit.", show_default=False)
]
Scopes = Annotated[
    list[ScopeName] | None,
    typer.Option(
        metavar="SCOPE",
        help="infer, read or admin; repeat for more.",
        show_default="infer and read",
    ),
]


@app.command("create")
@explains_failures
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Scopes = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="Such as 90d or 12h.", show_default="never")
    ] = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
    concurrency: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Requests at once.", show_default=False),
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
    limits = _limits(requests_per_minute, tokens_per_minute, concurrency)
    expires_at = None if expires_in is None else time.time() + seconds_of(expires_in)
    names = scope or [ScopeName.INFER, ScopeName.READ]

    async def make(store: "Store") -> "tuple[ApiKey, str]":
        from bond_core.store import KeyLimits, Scope

        return await store.access.create(
            name,
            {Scope(value) for value in names},
            expires_at=expires_at,
            limits=KeyLimits(*limits),
            log_content=log_content,
            train=train,
        )

    key, secret = _in_store(make, config, data_dir, may_make=True)
    sys.stderr.write(f"key {key.id} ({', '.join(sorted(key.scopes))}); it is shown this once:\n")
    sys.stderr.flush()
    typer.echo(secret)


@app.command("adopt")
@explains_failures
def adopt(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Scopes = None,
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

    key, is_new = _in_store(put, config, data_dir, may_make=True)
    refused = key.why_refused(time.time())
    state = "is in the store now" if is_new else "was there before"
    state += f" and {refused}" if refused else ""
    typer.echo(f"key {key.id} ({', '.join(sorted(key.scopes))}) {state}")


@app.command("list")
@explains_failures
def list_keys(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line, for programs.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
) -> None:
    """List every key that was made, revoked ones too, oldest first."""

    async def read(store: "Store") -> "list[ApiKey]":
        return await store.access.all()

    keys = _in_store(read, config, data_dir)
    if as_json:
        for key in keys:
            typer.echo(json_line(key, time.time()))
        return
    if not keys:
        typer.echo("there is no key: the gateway answers everyone who reaches it")
        return
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(
        keys_table([key_row(key, time.time()) for key in keys])
    )


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


def _limits(*limits: int | None) -> tuple[int | None, ...]:
    """The limits, in the order of `KeyLimits`, as far as its columns hold them."""
    names = ("--requests-per-minute", "--tokens-per-minute", "--concurrency")
    for name, limit in zip(names, limits, strict=True):
        if limit is not None and limit > _MOST:
            raise CommandError(f"{name} is at most {_MOST}; leave it out for no limit", CONFIG_EXIT)
    return limits


def seconds_of(text: str) -> int:
    """The seconds of a duration such as `90d`. Raises `CommandError` with exit code 2."""
    found = _DURATION.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise CommandError(
            f"--expires-in {text!r} is no duration: give a number and s, m, h, d or w, such as 90d",
            CONFIG_EXIT,
        )
    return int(found[1]) * _SECONDS[found[2]]


def _in_store(
    work: "Callable[[Store], Awaitable[T]]",
    config: ConfigFile,
    data_dir: DataDir,
    *,
    may_make: bool = False,
) -> T:
    """Run on the store's keys. `may_make` a database that is not there, for a first key before the
    first start: where a configuration names its folder, or in a folder that exists."""
    if config is None and data_dir is None:
        raise CommandError(
            "whose keys? Name the gateway's configuration with --config, or its folder with "
            "--data-dir",
            CONFIG_EXIT,
        )
    resolved = config_of_data(config, data_dir)

    async def run() -> T:
        from bond_core.store import open_store
        from bond_core.store.copies import files_of, require_database

        if not may_make or (config is None and data_dir is not None and not data_dir.is_dir()):
            require_database(resolved.store_url)
        made = [file for file in files_of(resolved.store_url)[:1] if not file.is_file()]
        store = await open_store(
            resolved.store_url,
            resolved.store.durability,
            commit_timeout_s=resolved.store.commit_timeout_s,
            check_power=False,  # a key can be taken back from a gateway that may not start
        )
        for file in made:
            sys.stderr.write(f"there was no database at {file}: made one\n")
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())
