"""Prometheus."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from bond_server.deps import GatewayDep

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(gateway: GatewayDep) -> Response:
    """All instruments in Prometheus' text format."""
    return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)
