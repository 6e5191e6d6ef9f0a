"""The answering routes: ids, arms, strategies, usage, headers, rows."""

import time
import uuid
from pathlib import Path

import pytest
from running_gateway import MODEL, MakeConfig, Run, row_id, scorer

from bond_core.types import Arm, SamplingParams
from bond_server.schemas.openai import TextCompletionRequest


async def test_best_of_n_answers_with_the_best_of_all_candidates(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        response = await running.post("/v1/best-of-n", bond={"return_candidates": True})
        assert response.status_code == 200
        body = response.json()
        record = await running.gateway.store.completions.get(row_id(body))
    candidates = body["bond"]["candidates"]
    assert [c["index"] for c in candidates] == [0, 1, 2, 3]
    assert [c["score"] for c in candidates] == [float(len(c["text"])) for c in candidates]
    best = max(candidates, key=lambda c: (c["score"], -c["index"]))
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": best["text"], "refusal": None}
    assert choice["finish_reason"] == best["finish_reason"]
    assert body["object"] == "chat.completion"
    assert body["model"] == f"{MODEL}:bon"
    assert uuid.UUID(row_id(body)).version == 7
    assert abs(body["created"] - time.time()) < 60
    bond = body["bond"]
    assert (bond["arm"], bond["version"], bond["strategy"], bond["best_of"]) == (
        "bon",
        "v0000",
        "best_of_n",
        4,
    )
    assert bond["score"] == best["score"]
    assert bond["degraded"] is None
    usage = body["usage"]
    assert usage["completion_tokens"] == sum(c["tokens"] for c in candidates)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["bond"] == {
        "n": 4,
        "ended": 4,
        "chosen_completion_tokens": best["tokens"],
        "cut_completion_tokens": 0,
        "reward_tokens": 4 * usage["prompt_tokens"] + usage["completion_tokens"],
    }
    assert record is not None
    assert record.chosen == (best["index"],)
    assert record.score == best["score"]
    assert [c.completion.text for c in record.candidates] == [c["text"] for c in candidates]
    assert record.prompt_token_ids
    assert (record.arm, record.best_of, record.n, record.status) == (Arm.BON, 4, 1, "ok")
    assert record.standard_sampling
    assert record.may_train
    assert record.latency_s >= record.generate_s > 0


async def test_n_of_best_of_are_returned_in_score_order(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        response = await running.post(
            "/v1/best-of-n", n=3, best_of=8, bond={"return_candidates": True}
        )
    body = response.json()
    scores = {c["index"]: c["score"] for c in body["bond"]["candidates"]}
    order = sorted(scores, key=lambda index: (-scores[index], index))[:3]
    texts = {c["index"]: c["text"] for c in body["bond"]["candidates"]}
    assert [c["message"]["content"] for c in body["choices"]] == [texts[i] for i in order]
    assert [c["index"] for c in body["choices"]] == [0, 1, 2]
    assert response.headers["x-bond-n"] == "8"


async def test_ties_go_to_the_lowest_index(
    run: Run, make_config: MakeConfig, rewards_file: Path
) -> None:
    async with run(make_config(scorer=scorer(rewards_file, "tied"))) as running:
        body = (await running.post("/v1/best-of-n", n=2, bond={"return_candidates": True})).json()
        record = await running.gateway.store.completions.get(row_id(body))
    assert body["bond"]["score"] == 1.5
    texts = [c["text"] for c in body["bond"]["candidates"]]
    assert [c["message"]["content"] for c in body["choices"]] == texts[:2]
    assert record is not None
    assert record.chosen == (0, 1)


async def test_headers_tell_how_the_answer_was_made(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:
        response = await running.client.post(
            "/v1/best-of-n",
            json={"messages": [{"role": "user", "content": "hi"}]},
            headers={"x-request-id": "my-request-7"},
        )
        generated = await running.post("/v1/best-of-n")
    headers = response.headers
    assert headers["x-request-id"] == "my-request-7"
    assert len(generated.headers["x-request-id"]) == 32
    assert headers["x-bond-arm"] == "bon"
    assert headers["x-bond-adapter"] == "v0000"
    assert headers["x-bond-n"] == "4"
    assert "x-bond-degraded" not in headers
    assert int(headers["openai-processing-ms"]) >= 0
    timings = response.json()["bond"]["timings"]
    for part in ("overhead", "generate", "score"):
        assert float(headers[f"x-bond-{part}-ms"]) == pytest.approx(
            timings[f"{part}_ms"], abs=0.001
        )
    assert timings["overhead_ms"] > 0


async def test_distilled_is_the_reference_until_a_promotion_and_says_so(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        response = await running.post("/v1/distilled")
        body = response.json()
    assert response.headers["x-bond-adapter"] == "v0000"
    note = "no version is live: distilled is the reference"
    assert response.headers["x-bond-note"] == note
    assert body["bond"]["note"] == note
    assert body["bond"]["strategy"] == "single"
    assert body["bond"]["score"] is None
    assert body["bond"]["candidates"] is None
    assert body["usage"]["bond"]["n"] == 1


@pytest.mark.parametrize(
    ("model", "arm", "best_of"),
    [
        (f"{MODEL}:reference", "reference", 1),
        (f"{MODEL}:bon", "bon", 4),
        (f"{MODEL}:distilled", "distilled", 1),
        (f"{MODEL}:distilled@v0", "distilled", 1),
        (f"{MODEL}:distilled@v0000", "distilled", 1),
    ],
)
async def test_chat_completions_take_the_arm_from_the_model_id(
    run: Run, make_config: MakeConfig, model: str, arm: str, best_of: int
) -> None:
    async with run(make_config()) as running:
        body = (await running.post("/v1/chat/completions", model=model)).json()
    assert body["model"] == model
    assert (body["bond"]["arm"], body["bond"]["best_of"]) == (arm, best_of)


async def test_best_of_composes_with_the_distilled_policy(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        body = (
            await running.post(
                "/v1/chat/completions",
                model=f"{MODEL}:distilled",
                best_of=3,
                bond={"return_candidates": True},
            )
        ).json()
    bond = body["bond"]
    assert (bond["arm"], bond["strategy"], bond["best_of"]) == ("distilled", "best_of_n", 3)
    assert bond["score"] == max(c["score"] for c in bond["candidates"])


async def test_the_plain_name_splits_by_unit(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config(arms={"split": {"bon": 0.5, "distilled": 0.5}})) as running:
        arms: dict[str, set[str]] = {}
        for unit in [f"user-{i}" for i in range(12)] * 2:
            body = (await running.post("/v1/chat/completions", model=MODEL, user=unit)).json()
            arms.setdefault(unit, set()).add(body["bond"]["arm"])
    assert all(len(seen) == 1 for seen in arms.values())
    assert set.union(*arms.values()) == {"bon", "distilled"}


async def test_the_unit_is_the_most_explicit_name_given(run: Run, make_config: MakeConfig) -> None:
    async with run(make_config()) as running:

        async def unit(headers: dict[str, str], **body: object) -> str:
            response = await running.client.post(
                "/v1/distilled",
                json={"messages": [{"role": "user", "content": "hi"}], **body},
                headers=headers,
            )
            record = await running.gateway.store.completions.get(row_id(response.json()))
            assert record is not None
            return record.unit

        everything = {
            "safety_identifier": "safe",
            "user": "user",
            "metadata": {"session_id": "session"},
        }
        assert await unit({"x-bond-unit": "unit"}, **everything) == "unit"
        assert await unit({}, **everything) == "safe"
        assert await unit({}, user="user", metadata={"session_id": "session"}) == "user"
        assert await unit({}, metadata={"session_id": "session", "other": "x"}) == "session"
        assert await unit({"x-request-id": "request-1"}) == "request-1"


async def test_sampling_parameters_reach_the_row_and_mark_it(
    run: Run, make_config: MakeConfig
) -> None:
    config = make_config(sampling={"temperature": 0.9, "max_tokens": 32})
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "max_completion_tokens": 9,
        "stop": "END",
        "seed": 11,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"3": -2},
    }
    async with run(config) as running:
        completions = running.gateway.store.completions
        other = await completions.get(row_id((await running.post("/v1/distilled", **asked)).json()))
        plain = await completions.get(row_id((await running.post("/v1/distilled")).json()))
        seeded = await completions.get(
            row_id((await running.post("/v1/distilled", seed=4, max_tokens=32)).json())
        )
    assert other is not None
    assert plain is not None
    assert seeded is not None
    params = other.params
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.5, 0.9, 7, 9)
    assert (params.stop, params.seed, params.logit_bias) == (("END",), 11, {3: -2.0})
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert not other.standard_sampling
    assert (plain.params.temperature, plain.params.max_tokens) == (0.9, 32)
    assert plain.standard_sampling
    assert seeded.standard_sampling


async def test_what_asks_for_nothing_may_be_sent(run: Run, make_config: MakeConfig) -> None:
    nothing: dict[str, object] = {
        "service_tier": "auto", "modalities": ["text"], "response_format": {"type": "text"},
        "tools": [], "functions": [], "web_search_options": None,
    }  # fmt: skip
    async with run(make_config()) as running:
        told = await running.post("/v1/distilled", **nothing)
        assert told.status_code == 200, told.text
        text = {"model": MODEL, "prompt": "hi", "echo": False, "suffix": "", "service_tier": "auto"}
        told = await running.client.post("/v1/completions", json=text)
        assert told.status_code == 200, told.text
        refused = await running.client.post("/v1/completions", json={**text, "echo": True})
        assert refused.json()["error"]["param"] == "echo"


@pytest.mark.parametrize(
    ("split", "statuses"),
    [
        ({"reference": 0.99, "bon": 0.01, "distilled": 0.0}, (400, 200, 200)),
        ({"reference": 0.5, "bon": 0.0, "distilled": 0.5}, (200, 200, 200)),
    ],
)
async def test_the_plain_name_at_temperature_zero_needs_a_split_without_best_of_n(
    run: Run, make_config: MakeConfig, split: dict[str, float], statuses: tuple[int, ...]
) -> None:
    async with run(make_config(arms={"best_of": 4, "split": split})) as running:
        found = [
            (await running.post("/v1/chat/completions", temperature=0, **sent)).status_code
            for sent in (
                {"model": MODEL},
                {"model": MODEL, "best_of": 1},
                {"model": f"{MODEL}:distilled"},
            )
        ]
    assert tuple(found) == statuses


@pytest.mark.parametrize("field", ["user", "safety_identifier", "metadata"])
async def test_names_of_users_are_bounded(run: Run, make_config: MakeConfig, field: str) -> None:
    def sent(length: int) -> dict[str, object]:
        value = "u" * length
        return {field: {"k" * 64: value} if field == "metadata" else value}

    async with run(make_config()) as running:
        assert (await running.post("/v1/distilled", **sent(512))).status_code == 200
        refused = await running.post("/v1/distilled", **sent(513))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"].startswith(field)


async def test_a_top_k_of_minus_one_keeps_the_whole_vocabulary(
    run: Run, make_config: MakeConfig
) -> None:
    found: list[tuple[int, bool]] = []
    async with run(make_config()) as running:
        for top_k in (-1, 0, 7):
            answer = (await running.post("/v1/distilled", top_k=top_k)).json()
            row = await running.gateway.store.completions.get(row_id(answer))
            assert row is not None
            found.append((row.params.top_k, row.standard_sampling))
    assert found == [(0, True), (0, True), (7, False)]
    narrow = SamplingParams(top_k=5)
    for sent, kept in ((-1, 0), (0, 0), (None, 5), (9, 9)):
        body = TextCompletionRequest(model=MODEL, prompt=["hi"], top_k=sent)
        assert body.to_params(narrow).top_k == kept


@pytest.mark.parametrize("by_default", [True, False])
async def test_store_decides_on_training_and_absent_means_the_default(
    run: Run, make_config: MakeConfig, by_default: bool
) -> None:
    async with run(make_config(server={"train_on_traffic": by_default})) as running:
        for asked, expected in ((True, True), (False, False), (None, by_default)):
            answer = (await running.post("/v1/distilled", store=asked)).json()
            record = await running.gateway.store.completions.get(row_id(answer))
            assert record is not None
            assert record.may_train is expected


async def test_messages_reach_the_engine_as_they_are(run: Run, make_config: MakeConfig) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "2"}],
        },
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "grüße, 東京 🚀"},
    ]
    async with run(make_config()) as running:
        body = (await running.post("/v1/distilled", messages=messages)).json()
        record = await running.gateway.store.completions.get(row_id(body))
    assert record is not None
    assert [m.as_dict() for m in record.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\n2"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "grüße, 東京 🚀"},
    ]


async def test_two_apps_live_in_one_process(
    run: Run, make_config: MakeConfig, tmp_path: Path
) -> None:
    first = make_config(data_dir=str(tmp_path / "first"))
    second = make_config(data_dir=str(tmp_path / "second"))
    async with run(first) as one, run(second) as two:
        await one.post("/v1/distilled")
        assert one.metric("bond_requests_total", arm="distilled", status="ok") == 1
        assert two.metric("bond_requests_total", arm="distilled", status="ok") == 0
        assert await two.gateway.store.completions.count() == 0


async def test_a_unit_is_kept_under_the_name_that_it_was_given(
    run: Run, make_config: MakeConfig
) -> None:
    async with run(make_config()) as running:
        utf8, long, other = [
            await running.client.post(
                "/v1/distilled",
                json={"messages": [{"role": "user", "content": "hi"}]},
                headers={"x-bond-unit": unit},
            )
            for unit in ("café".encode(), "a" * 513, b"caf\xe9")
        ]
        stored = await running.gateway.store.completions.get(row_id(utf8.json()))
        gone = await running.client.delete("/v1/users/café/completions")
        nobody = await running.client.delete("/v1/users//completions")
    assert stored is not None
    assert stored.unit == "café"
    assert gone.json()["num_rows"] == 1
    for refused in (long, other):
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "x-bond-unit"
    assert nobody.status_code == 400
