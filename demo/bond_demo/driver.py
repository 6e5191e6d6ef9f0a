"""The demo from beginning to end: seed, start, users, table, final evaluation, results.

Gateway and trainer are processes of their own, reached through `Service`; what this process knows
of them it reads from the store, as any report would.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from bond_client import AsyncClient
from bond_core.config import BondConfig
from bond_core.store import Store, open_store
from bond_core.types import Arm, PolicyState
from bond_demo.conclusion import conclude
from bond_demo.next_steps import next_steps
from bond_demo.seeding import seed_log
from bond_demo.settings import DemoSettings
from bond_demo.snapshot import Snapshot, take_snapshot, with_unlogged_failures
from bond_demo.table import live_view
from bond_demo.users import Users
from bond_demo.worlds import traffic_prompts

_REFRESH_S = 1.0
_PLAIN_INTERVAL_S = 15.0
"""Between two tables where the output is not a terminal."""

_ADOPTION_LIMIT_S = 15.0
"""How long the gateway may take, after the traffic, to load and probe the last challenger."""


class Service(Protocol):
    """Gateway and trainer as processes."""

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        ...

    async def start(self) -> None:
        """Start both, and return when the gateway is ready."""
        ...

    def check(self) -> None:
        """Raise, with the reason, if the service came to its end."""
        ...

    async def stop_trainer(self) -> None:
        """Stop the trainer, which ends what it is evaluating, and leave the gateway running."""
        ...

    async def stop(self) -> None:
        """Stop both."""
        ...


@dataclass(slots=True)
class Run:
    """What is known of the run under way."""

    started: float
    """`time.monotonic()` when `bond demo` started."""
    traffic_started: float = 0.0
    traffic_since: float = 0.0
    """The same moment in Unix seconds."""
    promotions_before: int = 0
    """On this data directory, by earlier runs."""
    steps_before: int = 0
    """The same of training steps."""
    first_promotion_s: float | None = None
    """From the start of the traffic."""
    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])

    def notice(self, snapshot: Snapshot) -> None:
        """Keep the latest snapshot, and when the first promotion was seen."""
        self.snapshots[:] = [snapshot]
        if self.first_promotion_s is None and snapshot.promotions > self.promotions_before:
            self.first_promotion_s = time.monotonic() - self.traffic_started


async def run_demo(
    config: BondConfig,
    settings: DemoSettings,
    service: Service,
    started: float,
    console: Console | None = None,
) -> None:
    """Run the demo. Ctrl-C ends the traffic early; a second one ends everything.

    `started` is `time.monotonic()` at the start of the command. Raises what `service` raises when
    a model cannot be loaded or the gateway ends.
    """
    out = console or Console()
    run = Run(started)
    num_rows = await seed_log(config)
    out.print(
        f"seeded the log with {num_rows} Best-of-{config.arms.best_of} answers"
        if num_rows
        else f"going on with the log in {config.data_dir}"
    )
    async with _opened(config) as store:
        before = await take_snapshot(store, config, time.time())
        run.promotions_before, run.steps_before = before.promotions, before.training_step
        async with _stopped_by_signals() as interrupted:
            try:
                out.print("starting gateway and trainer ...")
                if not await _started(service, interrupted):
                    out.print("stopped before any traffic")
                    return
                steps = next_steps(service.url, config.model.served_name)
                out.print(steps, markup=False, highlight=False, soft_wrap=True)
                users = await _traffic(config, settings, service, store, run, interrupted, out)
                out.print("traffic ended; letting the trainer end its evaluation ...")
                await service.stop_trainer()
                await _adopted(store)
            finally:
                out.print("stopping ...")
                await service.stop()
        run.notice(await _observe(config, store, run, users))
        _print_failures(users, out)
        await conclude(
            config,
            settings,
            store,
            run.snapshots[-1],
            out,
            promotions=run.snapshots[-1].promotions - run.promotions_before,
            training_steps=max(0, run.snapshots[-1].training_step - run.steps_before),
            seconds_to_first_answer=(
                None if users.first_answer_at is None else users.first_answer_at - started
            ),
            seconds_to_first_promotion=run.first_promotion_s,
        )


async def _started(service: Service, interrupted: asyncio.Event) -> bool:
    """Whether the service is ready; False if Ctrl-C came first."""
    starting = asyncio.create_task(service.start())
    waiting = asyncio.create_task(interrupted.wait())
    try:
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if starting.done():
        await starting  # raises why the service could not start
        return True
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
    return False


async def _traffic(
    config: BondConfig,
    settings: DemoSettings,
    service: Service,
    store: Store,
    run: Run,
    interrupted: asyncio.Event,
    out: Console,
) -> Users:
    """Let users ask until the time is over or Ctrl-C; running requests end."""
    key = os.environ.get("BONDSERVE_API_KEY")  # needed if keys were made for the demo's store
    async with AsyncClient(service.url, api_key=key) as client:
        users = Users(
            client,
            config.model.served_name,
            traffic_prompts(settings.seed),
            rate_per_s=settings.rate_per_s,
            num_users=settings.num_users,
            seed=settings.seed,
        )
        run.traffic_started, run.traffic_since = time.monotonic(), time.time()
        asking = asyncio.create_task(users.run())
        try:
            await _watch(config, settings, service, store, run, users, interrupted, out)
        finally:
            users.stop()
            await asking
    return users


async def _watch(
    config: BondConfig,
    settings: DemoSettings,
    service: Service,
    store: Store,
    run: Run,
    users: Users,
    interrupted: asyncio.Event,
    out: Console,
) -> None:
    """Refresh the table until the end of the traffic."""
    live = Live(console=out, auto_refresh=False, transient=True) if out.is_terminal else None
    interval_s = _REFRESH_S if live is not None else _PLAIN_INTERVAL_S
    next_table = 0.0
    if live is not None:
        live.start()
    try:
        while not await _is_over(run, settings, interrupted):
            service.check()
            snapshot = await _observe(config, store, run, users)
            run.notice(snapshot)
            elapsed_s = time.monotonic() - run.traffic_started
            if elapsed_s < next_table:
                continue
            next_table = elapsed_s + interval_s
            view = live_view(snapshot, elapsed_s, settings.duration_s)
            if live is not None:
                live.update(view, refresh=True)
            else:
                out.print(view)
    finally:
        if live is not None:
            live.stop()


async def _observe(config: BondConfig, store: Store, run: Run, users: Users) -> Snapshot:
    """The store's view of this run's traffic, and the failures that only the users saw."""
    snapshot = await take_snapshot(store, config, run.traffic_since)
    shares = {arm: float(getattr(config.arms.split, arm.value)) for arm in Arm}
    return with_unlogged_failures(snapshot, users.failures.total(), shares)


async def _is_over(run: Run, settings: DemoSettings, interrupted: asyncio.Event) -> bool:
    """Wait for the next look; True when the traffic should end."""
    left_s = _REFRESH_S
    if settings.duration_s is not None:
        left_s = run.traffic_started + settings.duration_s - time.monotonic()
    try:
        async with asyncio.timeout(max(0.0, min(_REFRESH_S, left_s))):
            await interrupted.wait()
    except TimeoutError:
        return settings.duration_s is not None and left_s <= _REFRESH_S
    return True


async def _adopted(store: Store) -> None:
    """Wait until the gateway has taken up the version that passed the gate last, if one waits."""
    until = time.monotonic() + _ADOPTION_LIMIT_S
    challenger = PolicyState.CHALLENGER
    while time.monotonic() < until and await store.policies.in_state(challenger):  # noqa: ASYNC110 - the event is in another process
        await asyncio.sleep(0.2)


def _print_failures(users: Users, out: Console) -> None:
    for message, count in users.failures.most_common(5):
        out.print(Text(f"{count} requests failed: {message}", style="bold red"))


@contextlib.asynccontextmanager
async def _opened(config: BondConfig) -> AsyncIterator[Store]:
    store = await open_store(
        config.store_url,
        config.store.durability,
        config.store.group_commit_rows,
        config.store.commit_timeout_s,
    )
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _stopped_by_signals() -> AsyncIterator[asyncio.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the next one ends the process as usual."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def interrupt() -> None:
        interrupted.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, interrupt)
    try:
        yield interrupted
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
