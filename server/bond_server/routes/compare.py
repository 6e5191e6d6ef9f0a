"""One prompt, several arms side by side."""

from dataclasses import replace

from fastapi import APIRouter, Request, Response

from bond_core.errors import InvalidRequestError, UnknownModelError
from bond_core.json_text import dump_json
from bond_core.types import Arm
from bond_server.deps import ContextDep, GatewayDep
from bond_server.forms.comparison import comparison_view
from bond_server.gateway import Gateway
from bond_server.routes.answering import make_ask
from bond_server.routes.disconnect import CLIENT_CLOSED, until_disconnect
from bond_server.routes.once import KEY_HEADER
from bond_server.schemas.completion import Comparison
from bond_server.schemas.openai import ComparisonRequest
from bond_server.services.ask import Ask, Target
from bond_server.services.models import parse_selector

router = APIRouter(tags=["answers"])


@router.post("/v1/compare", response_model=Comparison)
async def compare(
    body: ComparisonRequest, request: Request, context: ContextDep, gateway: GatewayDep
) -> Response:
    """Answer one conversation by each arm asked for, at the same time."""
    if request.headers.get(KEY_HEADER) is not None:
        raise InvalidRequestError(
            f"{KEY_HEADER} is not taken by compare, whose answers are one row per arm: send it "
            "without, or ask each arm by its model id with a key of its own",
            param="Idempotency-Key",
        )
    models = gateway.models
    model = body.model or models.name
    if model != models.name:
        raise UnknownModelError(
            f"compare takes the base model {models.name!r}, or none; arms go into 'arms'"
        )
    targets = [await _target(gateway, index, arm) for index, arm in enumerate(body.arms)]
    if body.best_of is not None and not any(target.arm is Arm.BON for target in targets):
        raise InvalidRequestError(
            "best_of is the N of the arm bon, which arms does not name", param="best_of"
        )
    asks: list[Ask] = []
    for selector, target in zip(body.arms, targets, strict=True):
        ask = make_ask(body, request, context, gateway, target, models.id_of(selector))
        asks.append(replace(ask, best_of=body.best_of if target.arm is Arm.BON else None))
    compared = await until_disconnect(request, gateway.comparison.compare(asks))
    if compared is None:
        return Response(status_code=CLIENT_CLOSED)
    view = comparison_view(compared, body.arms, model)
    return Response(dump_json(view), media_type="application/json")


async def _target(gateway: Gateway, index: int, selector: str) -> Target:
    param = f"arms.{index}"
    if parse_selector(selector) is None:
        raise InvalidRequestError(
            f"there is no arm {selector!r}; arms are reference, bon, distilled and distilled@vN",
            param=param,
        )
    try:
        return await gateway.models.resolve(gateway.models.id_of(selector))
    except UnknownModelError as error:
        error.param = param
        raise
