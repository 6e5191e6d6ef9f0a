"""From an ask to arm, version and strategy, and what is refused on the way."""

from typing import Any

import pytest

from bond_core.config import ArmsConfig, SplitConfig
from bond_core.errors import InvalidRequestError
from bond_core.types import Arm, Message, SamplingParams
from bond_server.context import RequestContext
from bond_server.services.ask import Ask, Plan, Target, make_plan

ARMS = ArmsConfig(best_of=4, max_best_of=16)


def ask(target: Target, temperature: float = 1.0, **numbers: Any) -> Ask:
    return Ask(
        context=RequestContext("r", 0.0, 0.0),
        requested_model="m",
        target=target,
        messages=(Message("user", "hi"),),
        params=SamplingParams(temperature=temperature),
        unit="alice",
        **numbers,
    )


@pytest.mark.parametrize(
    ("target", "numbers", "expected"),
    [
        (Target(Arm.REFERENCE), {}, Plan(Arm.REFERENCE, "v0000", "single", 1, 1)),
        (Target(Arm.BON), {}, Plan(Arm.BON, "v0000", "best_of_n", 1, 4)),
        (Target(Arm.BON), {"n": 2}, Plan(Arm.BON, "v0000", "best_of_n", 2, 4)),
        (Target(Arm.BON), {"n": 7}, Plan(Arm.BON, "v0000", "best_of_n", 7, 7)),
        (Target(Arm.BON), {"best_of": 1}, Plan(Arm.BON, "v0000", "single", 1, 1)),
        (Target(Arm.BON), {"best_of": 16}, Plan(Arm.BON, "v0000", "best_of_n", 1, 16)),
        (Target(Arm.DISTILLED), {}, Plan(Arm.DISTILLED, "v0003", "single", 1, 1)),
        (Target(Arm.DISTILLED), {"n": 3}, Plan(Arm.DISTILLED, "v0003", "single", 3, 3)),
        (
            Target(Arm.DISTILLED),
            {"best_of": 8, "n": 2},
            Plan(Arm.DISTILLED, "v0003", "best_of_n", 2, 8),
        ),
        (Target(Arm.DISTILLED, "v0001"), {}, Plan(Arm.DISTILLED, "v0001", "single", 1, 1)),
        (Target(Arm.REFERENCE), {"best_of": 4}, Plan(Arm.BON, "v0000", "best_of_n", 1, 4)),
    ],
)
def test_plans(target: Target, numbers: dict[str, int], expected: Plan) -> None:
    assert make_plan(ask(target, **numbers), ARMS, "v0003") == expected


@pytest.mark.parametrize(
    ("numbers", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"n": 17}, "n"),
        ({"n": 17, "best_of": 18}, "best_of"),
    ],
)
@pytest.mark.parametrize("arm", [None, *Arm])
def test_numbers_are_refused_alike_for_every_arm(
    arm: Arm | None, numbers: dict[str, int], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        make_plan(ask(Target(arm), **numbers), ARMS, "v0003")
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("target", "numbers"),
    [
        (Target(Arm.BON), {}),
        (Target(Arm.DISTILLED), {"best_of": 2}),
        (Target(Arm.REFERENCE), {"n": 2}),
        (Target(None), {}),
    ],
)
def test_identical_draws_are_refused(target: Target, numbers: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError, match="temperature 0") as refused:
        make_plan(ask(target, temperature=0.0, **numbers), ARMS, "v0003")
    assert refused.value.param == "temperature"


def test_one_greedy_draw_is_fine() -> None:
    greedy = ask(Target(Arm.DISTILLED), temperature=0.0)
    assert make_plan(greedy, ARMS, "v0003").best_of == 1
    assert make_plan(ask(Target(Arm.BON), temperature=0.0, best_of=1), ARMS, "v0003").best_of == 1
    no_bon = ARMS.model_copy(update={"split": SplitConfig(bon=0, distilled=1)})
    assert make_plan(ask(Target(None), temperature=0.0), no_bon, "v0003").arm is Arm.DISTILLED


def test_whether_a_greedy_request_passes_does_not_hang_on_the_assignment() -> None:
    for unit in ("alice", "bob", "carol", "dave", "erin"):
        request = ask(Target(None), temperature=0.0)
        with pytest.raises(InvalidRequestError):
            make_plan(Ask(**{**_fields(request), "unit": unit}), ARMS, "v0003")


def _fields(request: Ask) -> dict[str, Any]:
    return {name: getattr(request, name) for name in Ask.__dataclass_fields__}
