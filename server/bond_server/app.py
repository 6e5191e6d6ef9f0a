"""The gateway as an ASGI application: pure assembly."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from bond_core import __version__
from bond_core.config import BondConfig
from bond_server.access.middleware import AccessMiddleware
from bond_server.access.query import parameters_of
from bond_server.asgi import RequestMiddleware
from bond_server.errors import install_error_handlers
from bond_server.gateway import open_gateway
from bond_server.loop_lag import LoopLag
from bond_server.metrics import Metrics
from bond_server.openapi import install_document
from bond_server.routes import (
    best_of_n,
    chat,
    compare,
    completions,
    distilled,
    health,
    keeping,
    metrics,
    models,
    policies,
    session,
    stored,
    training,
)
from bond_server.routes.direct import DirectMiddleware
from bond_server.shedding import SheddingMiddleware
from bond_server.tracing import open_tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

ANSWERING = (
    chat.router,
    completions.router,
    best_of_n.router,
    distilled.router,
    compare.router,
)
ROUTERS = (
    *ANSWERING,
    models.router,
    policies.router,
    training.router,
    stored.router,
    keeping.router,
    session.router,
    health.router,
    metrics.router,
)


def create_app(config: BondConfig, span_exporter: "SpanExporter | None" = None) -> FastAPI:
    """The gateway for a configuration. Nothing is opened before the lifespan begins, and nothing
    is shared between apps. `span_exporter` takes the place of the configured one."""
    instruments = Metrics()
    tracing = open_tracing(config, span_exporter)
    lag = LoopLag()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with open_gateway(config, instruments, tracing) as gateway:
            app.state.gateway = gateway
            beating = asyncio.create_task(lag.run(), name="loop lag")
            yield
            beating.cancel()

    app = FastAPI(
        title="bondserve",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # both pages load their scripts from elsewhere, and stay blank offline
        redoc_url=None,
        # the framework's own spans would double ours, and asking whether they are wanted costs
        # every request three looks into the environment
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    # the last one added is the outermost
    app.add_middleware(DirectMiddleware, routers=ANSWERING)
    app.add_middleware(AccessMiddleware, parameters=parameters_of(ROUTERS))
    app.add_middleware(SheddingMiddleware, limits=config.admission, metrics=instruments, lag=lag)
    if tracing is not None:
        from bond_server.tracing.middleware import TracingMiddleware

        app.add_middleware(TracingMiddleware, tracing=tracing)
    app.add_middleware(
        RequestMiddleware,
        metrics=instruments,
        access=config.access,
        access_log=config.server.access_log,
    )
    install_error_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    install_document(app)
    return app
