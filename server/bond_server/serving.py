"""Running the gateway under uvicorn: the socket first, then the models, then the traffic."""

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Generator
from types import FrameType

import uvicorn

from bond_core.config import BondConfig
from bond_core.errors import ConfigError
from bond_server.access.metrics_listener import metrics_listener
from bond_server.app import create_app
from bond_server.descriptors import make_room
from bond_server.http_protocol import bounded_by

logger = logging.getLogger(__name__)

BACKLOG = 2048
GC_ALLOCATIONS = 10_000
"""Objects that may be made before the youngest are looked at; a request makes some hundreds. A good
one leaves no cycles, but one that is refused while it is read leaves some, and its body with them:
five times as many, and bodies of the largest size held gigabytes."""


def print_url(url: str) -> None:
    """Tell the terminal where the gateway listens; scripts read this line too."""
    sys.stdout.write(f"bond gateway ready on {url}\n")
    sys.stdout.flush()


def run(config: BondConfig, announce: Callable[[str], None] = print_url) -> None:
    """Serve until SIGTERM or SIGINT; running requests get `shutdown_grace_s` to end.

    `announce` is called with the base URL once requests are answered. Raises `ConfigError` if the
    port is in use, before anything is loaded, and the `BondError` of whatever cannot be opened.
    """
    make_room(config.admission.max_requests)
    loop_factory = uvicorn.Config(
        "", log_config=None
    ).get_loop_factory()  # uvloop's, where it is installed
    with (
        claim_socket(config.server.host, config.server.port) as listener,
        asyncio.Runner(loop_factory=loop_factory) as runner,
    ):
        runner.run(_serve(config, listener, announce))


def claim_socket(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Raises `ConfigError` if the port is taken."""
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ConfigError(f"server.host {host!r} cannot be resolved: {error.strerror}") from None
    try:
        # two sockets may share an address as long as neither listens: ask by listening once
        with _bound(family, address) as probe:
            probe.listen(1)
            address = probe.getsockname()
        return _bound(family, address)
    except OSError as error:
        raise _explain(error, host, port) from None


def _bound(family: int, address: object) -> socket.socket:
    # asyncio turns Nagle's algorithm off where a socket names its protocol; with it, the body of
    # an answer waits 40 ms for the acknowledgement of its head
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)  # pyright: ignore[reportArgumentType]  # of its family
    except OSError:
        bound.close()
        raise
    return bound


def _explain(error: OSError, host: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"port {port} on {host} is in use: stop what listens there, or choose another with "
            "server.port (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return ConfigError(f"no permission to listen on port {port}: choose one from 1024 on")
    return ConfigError(f"cannot listen on {host} port {port}: {error.strerror}")


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready, and leaves the signals to us: it would end the process
    before the store is closed."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self._is_hurried = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen, then tell the address."""
        await super().startup(sockets)
        host, port = (sockets or [])[0].getsockname()[:2]
        self._announce(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the handlers as they are."""
        yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; a second Ctrl-C ends the grace at once, as its time would have, where uvicorn would
        leave running requests to an engine and a store that are closed."""
        if self.should_exit and sig == signal.SIGINT and not self._is_hurried:
            self._is_hurried = True
            for task in list(self.server_state.tasks):
                task.cancel()
        else:
            super().handle_exit(sig, frame)


async def _serve(
    config: BondConfig, listener: socket.socket, announce: Callable[[str], None]
) -> None:
    app = create_app(config)
    settings = uvicorn.Config(
        app,
        lifespan="off",  # ours runs around the server, so that its errors reach the caller
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        http=bounded_by(config.access),
        timeout_graceful_shutdown=max(1, round(config.server.shutdown_grace_s)),
    )
    server = _Server(settings, announce)
    opening = asyncio.current_task()
    assert opening is not None
    loop = asyncio.get_running_loop()
    opened = False

    def stop(number: int) -> None:
        if opened:
            server.handle_exit(number, None)
        else:
            opening.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        async with app.router.lifespan_context(app):
            opened = True
            _spare_the_collector()
            try:
                with metrics_listener(config.access, app.state.gateway.metrics.registry):
                    await server.serve(sockets=[listener])
            except OSError as error:
                raise _explain(error, config.server.host, config.server.port) from None
    except asyncio.CancelledError:
        if opened:
            raise
        logger.info("stopped while starting")
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _spare_the_collector() -> None:
    """Let the garbage collector look at what requests leave, and not at all that was loaded for
    them, which never becomes garbage and is most of what there is."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)
