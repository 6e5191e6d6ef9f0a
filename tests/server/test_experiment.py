"""An answer and its row name the experiment that chose the arm, and only where one did."""

import json
from typing import Any

import httpx
import pytest
from running_gateway import MODEL, MakeConfig, Run, Running, row_id
from served_gateway import Serve, told
from stored import all_rows

from bond_core.config import load_config
from bond_core.errors import ConfigError
from bond_core.store.records import CompletionRecord
from bond_core.types import Arm

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HEADER = "x-bond-experiment"
HI = {"messages": [{"role": "user", "content": "hi"}]}
EXPERIMENT = {"experiment": "spring:2"}


async def row_of(running: Running, answer: httpx.Response) -> CompletionRecord:
    record = await running.gateway.store.completions.get(row_id(answer.json()))
    assert record is not None
    return record


@pytest.mark.parametrize("arm", ["reference", "bon", "distilled"])
async def test_where_the_split_chose_the_arm_it_is_named(
    run: Run, make_config: MakeConfig, database_url: str, arm: str
) -> None:
    split = {"bon": 0, "distilled": 0} | {arm: 1}
    config = make_config(arms={"split": split, **EXPERIMENT}, store={"url": database_url})
    async with run(config) as running:
        answer = await running.post(CHAT, model=MODEL, n=2)
        row = await row_of(running, answer)
        found = await running.client.get(f"{CHAT}/{answer.json()['id']}")
        [line] = (await running.client.get("/v1/export")).text.splitlines()
    assert answer.headers["x-bond-arm"] == arm
    assert answer.headers[HEADER] == answer.json()["bond"]["experiment"] == "spring:2"
    assert (row.arm, row.experiment) == (Arm(arm), "spring:2")
    assert found.json()["bond"]["experiment"] == "spring:2"
    assert json.loads(line)["experiment"] == "spring:2"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"model": f"{MODEL}:reference"}),
        (CHAT, {"model": f"{MODEL}:bon"}),
        (CHAT, {"model": f"{MODEL}:distilled"}),
        (CHAT, {"model": MODEL, "best_of": 2}),
        (CHAT, {"model": MODEL, "best_of": 1}),
        ("/v1/best-of-n", {}),
        ("/v1/distilled", {}),
    ],
)
async def test_who_chooses_arm_or_n_is_in_no_experiment(
    run: Run, make_config: MakeConfig, path: str, body: dict[str, Any]
) -> None:
    async with run(make_config()) as running:
        answer = await running.post(path, **body)
        row = await row_of(running, answer)
    assert answer.status_code == 200
    assert HEADER not in answer.headers
    assert answer.json()["bond"]["experiment"] is None
    assert row.experiment is None


async def test_compared_arms_were_named(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        compared = (await running.post("/v1/compare")).json()
        rows = [
            await running.gateway.store.completions.get(row_id({"id": arm["id"]}))
            for arm in compared["arms"]
        ]
    assert [row and (row.arm, row.experiment) for row in rows] == [
        (Arm.BON, None),
        (Arm.DISTILLED, None),
    ]


async def test_a_failure_counts_in_the_experiment_too(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(arms=EXPERIMENT)) as running:
        await running.gateway.engine.close()
        answer = await running.client.post(
            CHAT, json={"model": MODEL, **HI}, headers={"x-request-id": "r-1", "x-bond-unit": "u"}
        )
        [row] = await all_rows(running.gateway.store)
    assert answer.status_code == 503
    assert (row.status, row.unit, row.experiment) == ("failed", "u", "spring:2")


async def test_assignments_are_counted_by_experiment(run: Run, make_config: MakeConfig) -> None:
    split = {"bon": 0, "distilled": 1}
    async with run(make_config(arms={"split": split, **EXPERIMENT})) as running:
        for body in ({}, {"stream": True}, {"best_of": 2}):
            await running.post(CHAT, model=MODEL, **body)
        await running.post("/v1/distilled")

        def counted(experiment: str) -> float:
            labels = {"arm": "distilled", "experiment": experiment}
            return running.metric("bond_assignments_total", **labels)

        assert (counted("spring:2"), counted("")) == (2, 2)


@pytest.mark.parametrize("arm", ["bon", "distilled"])
async def test_a_stream_names_it_before_its_first_token(
    serve: Serve, make_config: MakeConfig, arm: str
) -> None:
    split = {"bon": 0, "distilled": 0} | {arm: 1}
    async with serve(make_config(arms={"split": split, **EXPERIMENT})) as served:
        by_split = await told(served, CHAT, model=MODEL, **HI)
        by_name = await told(served, CHAT, model=f"{MODEL}:{arm}", **HI)
    assert by_split.headers["x-bond-arm"] == by_name.headers["x-bond-arm"] == arm
    assert by_split.headers[HEADER] == "spring:2"
    assert by_split.chunks[-1]["bond"]["experiment"] == "spring:2"
    assert HEADER not in by_name.headers
    assert by_name.chunks[-1]["bond"]["experiment"] is None


async def test_several_prompts_name_it_once_whole_and_streamed(
    serve: Serve, run: Run, make_config: MakeConfig
) -> None:
    body = {"model": MODEL, "prompt": ["a", "b"]}
    async with run(make_config(arms=EXPERIMENT)) as running:
        whole = await running.client.post(TEXT, json=body)
    async with serve(make_config(arms=EXPERIMENT)) as served:
        streamed = await told(served, TEXT, **body)
    assert whole.headers[HEADER] == streamed.headers[HEADER] == "spring:2"
    assert [p["experiment"] for p in whole.json()["bond"]["prompts"]] == ["spring:2"] * 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_replayed_answer_names_the_experiment_that_it_was_given_in(
    serve: Serve, make_config: MakeConfig, stream: bool
) -> None:
    body, headers = {"model": MODEL, "stream": stream, **HI}, {"Idempotency-Key": "k"}
    async with serve(make_config(arms=EXPERIMENT)) as served:
        first = await served.client.post(CHAT, json=body, headers=headers)
    async with serve(make_config(arms={"experiment": "summer"})) as served:
        again = await served.client.post(CHAT, json=body, headers=headers)
        new = await served.client.post(CHAT, json=body)
    assert again.headers["x-bond-replayed"] == "true"
    assert first.headers[HEADER] == again.headers[HEADER] == "spring:2"
    assert again.content == first.content
    assert new.headers[HEADER] == "summer"


@pytest.mark.parametrize(
    "name", ["", "two words", "\u00e9", "a\r\nset-cookie: b", "x" * 129, "a\n"]
)
def test_a_name_that_no_header_can_carry_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"arms\.experiment"):
        load_config(flags={"arms": {"experiment": name}}, environ={})
