"""`x-should-retry`: what the SDKs of OpenAI do with an error, and what that costs."""

import asyncio
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from held_engine import Held
from locked_store import locked
from openai import AsyncOpenAI
from running_gateway import MODEL, MakeConfig, Run, eventually
from served_gateway import HI, Serve

from bond_core.errors import EngineUnavailableError, UnknownVersionError
from bond_server.errors import ERROR_TABLE, WORTH_A_RETRY

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()


def fake(**fields: Any) -> dict[str, Any]:
    return {"type": "fake", **fields}


def test_every_code_of_the_table_is_documented_as_it_is() -> None:
    [true, false] = re.findall(
        r"`x-should-retry` is `true` where (.*?), and `false` where (.*?)Without it",
        DOCUMENT,
        re.DOTALL,
    )[0]
    for words, worth in ((true, True), (false, False)):
        codes = {code for code, value in WORTH_A_RETRY.items() if value is worth}
        assert set(re.findall(r"`(\w+)`", words)) == codes
    documented = set(re.findall(r"^\| \d{3} \| `(\w+)` \|", DOCUMENT, re.MULTILINE))
    assert WORTH_A_RETRY.keys() <= documented
    assert WORTH_A_RETRY.keys() & {row.code for row in ERROR_TABLE}


async def test_errors_say_whether_to_come_back(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(engine=fake(delay_s=5))) as running:
        late = await running.post("/v1/best-of-n", bond={"deadline_ms": 50})
        assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
        engine: Any = running.gateway.engine
        engine.failure = UnknownVersionError("it was unloaded")
        gone = await running.post("/v1/best-of-n")
        assert (gone.status_code, gone.headers["x-should-retry"]) == (503, "true")
        engine.failure = EngineUnavailableError("away")
        away = await running.post("/v1/best-of-n")
        assert away.status_code == 503
        assert "x-should-retry" not in away.headers  # the status says enough
        wrong = await running.post("/v1/best-of-n", best_of=0)
        assert wrong.status_code == 400
        assert "x-should-retry" not in wrong.headers


async def test_the_package_does_not_draw_again_what_met_its_deadline(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config(engine=fake(delay_s=5))) as served:
        async with AsyncOpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=2) as sdk:
            with pytest.raises(openai.APIStatusError) as told:
                await sdk.chat.completions.create(
                    model=f"{MODEL}:bon",
                    messages=[{"role": "user", "content": HI[0]["content"]}],
                    extra_body={"bond": {"deadline_ms": 50}},
                )
        assert told.value.status_code == 504
        assert served.metric("bond_assignments_total", arm="bon", experiment="") == 1


async def test_the_package_draws_again_what_was_not_committed(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config()) as served:

        async def locked_until_the_first_attempt_has_failed() -> None:
            async def failed() -> bool:
                return served.metric("bond_requests_total", arm="bon", status="failed") >= 1

            with locked(served.gateway.store, commit_timeout_s=0.3):
                is_locked.set()
                await eventually(failed)

        is_locked = asyncio.Event()
        coming_back = asyncio.create_task(locked_until_the_first_attempt_has_failed())
        await is_locked.wait()
        async with AsyncOpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=5) as sdk:
            answer = await sdk.chat.completions.create(
                model=f"{MODEL}:bon",
                messages=[{"role": "user", "content": HI[0]["content"]}],
            )
        await coming_back
        assert answer.choices[0].message.content
        assert served.metric("bond_assignments_total", arm="bon", experiment="") >= 2
        assert served.metric("bond_requests_total", arm="bon", status="ok") == 1


async def test_a_row_that_is_not_committed_leaves_the_retry_to_the_status(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config(store={"commit_timeout_s": 5})) as running:
        refuse = "CREATE TRIGGER r BEFORE INSERT ON contents BEGIN SELECT RAISE(ABORT, 'no'); END"
        await running.gateway.store.database.write(lambda c: c.exec_driver_sql(refuse).close())
        away = await running.post("/v1/best-of-n")
        assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
        assert "x-should-retry" not in away.headers


async def test_the_package_comes_back_where_the_queue_was_full(
    serve: Serve, make_config: MakeConfig
) -> None:
    async with serve(make_config(admission={"max_rows": 4, "max_waiting_rows": 0})) as served:
        engine = Held(served.engine)
        body = {"model": f"{MODEL}:bon", "messages": HI}
        first = asyncio.create_task(served.client.post("/v1/chat/completions", json=body))
        while served.gateway.admission.running_rows < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        refused = await served.client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "true")

        def refusals() -> float:
            return served.metric("bond_admission_refused_total", reason="queue_full")

        async def refused_once_more() -> bool:
            return refusals() >= 2

        async with AsyncOpenAI(api_key="none", base_url=f"{served.url}/v1", max_retries=5) as sdk:
            asking = asyncio.create_task(
                sdk.chat.completions.create(
                    model=f"{MODEL}:bon",
                    messages=[{"role": "user", "content": HI[0]["content"]}],
                )
            )
            await eventually(refused_once_more)
            engine.let_go()
            answer = await asking
        assert answer.choices[0].message.content
        assert (await first).status_code == 200
