"""What a pooling scorer makes sure of at its start, and what its identity stands for."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from faulty_pooling_server import (
    MODEL,
    FaultyPoolingServer,
    Tokens,
    hang,
    running_server,
    sigmoid_if,
    vllm_error,
)
from tiny_models import make_tokenizer

from bond_core.config import PoolingScorerConfig, SelfTestConfig
from bond_core.errors import ModelLoadError, ScoringError
from bond_core.rewards import Scorer, build_scorer
from bond_core.types import Message

TEST = SelfTestConfig(prompt="Is it late?", good="Sorry, it is.", bad="So what.")
TURNED = SelfTestConfig(prompt=TEST.prompt, good=TEST.bad, bad=TEST.good)


@pytest.fixture
async def server() -> AsyncIterator[FaultyPoolingServer]:
    async with running_server() as running:
        running.formula = likes_long
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny-reward"
    make_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(params=["here", "there"])
def path(request: pytest.FixtureRequest, folder: Path) -> Path | None:
    return folder if request.param == "here" else None


def likes_long(tokens: Tokens) -> float:
    return len(tokens) / 7 - 3


async def started(server: FaultyPoolingServer | str, **settings: Any) -> Scorer:
    """A scorer of a server, or of a URL, that was started, and closed again."""
    url = server if isinstance(server, str) else server.url
    scorer = build_scorer(
        PoolingScorerConfig(url=url, **{"self_test": TEST, "timeout_s": 60, **settings})
    )
    await scorer.start()
    await scorer.close()
    return scorer


async def refused(server: FaultyPoolingServer, **settings: Any) -> str:
    """Why it could not be started."""
    with pytest.raises(ModelLoadError) as caught:
        await started(server, **settings)
    assert server.url in str(caught.value)
    return str(caught.value)


async def test_a_good_server_is_taken(server: FaultyPoolingServer, path: Path | None) -> None:
    scorer = await started(server, path=path)
    assert scorer.name == MODEL
    switches = [body["use_activation"] for body in server.bodies]
    assert switches == [False, False, True, True]
    turns = [(("user", TEST.prompt), ("assistant", text)) for text in (TEST.good, TEST.bad)]
    assert server.asked == [[server.tokens(*own)] for own in turns] * 2


async def test_a_server_that_is_not_there(server: FaultyPoolingServer) -> None:
    await server.stop()
    message = await refused(server)
    assert "cannot be reached" in message
    assert "correct url in the scorer's section" in message


async def test_a_server_that_hangs(server: FaultyPoolingServer) -> None:
    server.fault = hang
    message = await refused(server, timeout_s=1.5)
    assert "cannot score the self-test" in message
    assert "took longer than 1.5 s" in message


@pytest.mark.parametrize("key", [None, "wrong"])
async def test_a_wrong_key(server: FaultyPoolingServer, key: str | None) -> None:
    server.key = "right"
    message = await refused(server, api_key=key)
    assert "refused the API key (401: Unauthorized)" in message
    assert "BOND_SCORER__API_KEY" in message
    assert (await started(server, api_key="right")).name == MODEL


async def test_a_key_that_only_a_proxy_asks_for_at_classify(server: FaultyPoolingServer) -> None:
    async def fault(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
        return vllm_error(403, "no such key")

    server.fault = fault
    assert "refused the API key (403: no such key)" in await refused(server)


async def test_the_name_is_taken_from_the_server_or_has_to_be_there(
    server: FaultyPoolingServer,
) -> None:
    server.models = ["first", "second"]
    assert "set model_name in the scorer's section to one of first, second" in await refused(server)
    assert (await started(server, model_name="second")).name == "second"
    assert {body["model"] for body in server.bodies} == {"second"}
    assert "serves no model 'third'" in await refused(server, model_name="third")
    server.models = []
    assert "lists no models" in await refused(server)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (200, "<html>hello</html>", "not JSON"),
        (200, '{"data": "none"}', "lists no models"),
        (404, '{"detail": "Not Found"}', r"lists no models at /v1/models \(404: Not Found\)"),
    ],
)
async def test_another_kind_of_server(status: int, text: str, message: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    app = web.Application()
    app.router.add_get("/{any:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(ModelLoadError, match=message):
            await started(f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_server_of_a_text_model(server: FaultyPoolingServer, status: int) -> None:
    async def fault(request: web.Request, data: list[dict[str, Any]]) -> web.Response:
        return web.json_response({"detail": "Not Found"}, status=status)

    server.fault = fault
    message = await refused(server)
    assert f"does not score with this model ({status}: Not Found)" in message
    assert "--runner pooling" in message


async def test_scores_that_went_through_a_sigmoid_are_refused(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    server.switch = lambda score, activation: sigmoid_if(score, True)
    message = await refused(server, path=path)
    assert "the server ignores the switch" in message
    good, bad = (
        sigmoid_if(likes_long(server.tokens(("user", TEST.prompt), ("assistant", text))), True)
        for text in (TEST.good, TEST.bad)
    )
    assert f"{good:.4g} and {bad:.4g}" in message
    await refused(server, path=path, self_test=None)  # whatever the self-test


async def test_a_model_without_activation_is_taken_if_its_scores_are_no_probabilities(
    server: FaultyPoolingServer,
) -> None:
    server.switch = lambda score, activation: score
    await started(server)
    server.formula = lambda tokens: len(tokens) / 100
    assert "ignores the switch" in await refused(server)


async def test_another_function_than_a_sigmoid_is_refused(server: FaultyPoolingServer) -> None:
    server.switch = lambda score, activation: score / 2 if activation else score
    assert "applies a function of its own" in await refused(server)


async def test_large_scores_pass(server: FaultyPoolingServer) -> None:
    server.formula = lambda tokens: 1e6 * likes_long(tokens)
    scorer = await started(server)
    assert scorer.name == MODEL
    assert [body["use_activation"] for body in server.bodies] == [False, False, True, True]


async def test_the_good_answer_has_to_win(server: FaultyPoolingServer, path: Path | None) -> None:
    message = await refused(server, path=path, self_test=TURNED)
    good, bad = (
        likes_long(server.tokens(("user", TEST.prompt), ("assistant", text)))
        for text in (TURNED.good, TURNED.bad)
    )
    assert f"gives the good answer of the self-test {good:.4g} and the bad one {bad:.4g}" in message
    assert "self_test" in message
    server.formula = lambda tokens: -1.0
    assert "-1 and the bad one -1" in await refused(server, path=path)
    await started(server, path=path, self_test=None)


async def test_a_score_that_is_no_number_is_found_at_the_start(
    server: FaultyPoolingServer,
) -> None:
    server.switch = lambda score, activation: float("nan")
    assert "cannot score the self-test: reward model tiny-reward" in await refused(server)


async def test_another_template_at_the_server_is_found(
    server: FaultyPoolingServer, folder: Path
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    theirs = len(server.tokens(("user", TEST.prompt), ("assistant", TEST.good)))
    message = await refused(server, path=folder)
    assert f"renders a conversation as {theirs} tokens and the folder {folder} as " in message
    assert "different from token 0 on" in message
    await started(server)


async def test_a_folder_cannot_be_compared_where_a_proxy_hides_the_route(
    server: FaultyPoolingServer, folder: Path
) -> None:
    server.can_tokenize = False
    message = await refused(server, path=folder)
    assert "404 at /tokenize: Not Found): let that route through, or leave path out" in message
    await started(server)


async def test_another_folder_at_the_server_is_found_where_it_can_be_looked_at(
    server: FaultyPoolingServer, folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    server.root = str(other)
    await started(server, path=folder)
    (other / "config.json").write_text('{"num_labels": 1}')
    message = await refused(server, path=folder)
    assert f"was started with {other}, whose files are not those of {folder}" in message
    server.root = "/models/of/another/machine"
    await started(server, path=folder)


async def test_a_folder_that_is_not_there_or_has_no_template(
    server: FaultyPoolingServer, tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match="nowhere does not exist: correct path"):
        await started(server, path=tmp_path / "nowhere")
    with pytest.raises(ModelLoadError, match="no tokenizer that can be loaded"):
        await started(server, path=tmp_path)


async def test_the_identity_is_of_what_decides_the_scores(
    server: FaultyPoolingServer, path: Path | None
) -> None:
    first = (await started(server, path=path)).identity
    assert (await started(server, path=path, batch_size=2)).identity == first
    server.formula = lambda tokens: likes_long(tokens) + 1e-7
    assert (await started(server, path=path)).identity == first
    server.formula = lambda tokens: likes_long(tokens) + 0.01
    assert (await started(server, path=path)).identity != first


async def test_without_the_folder_the_identity_is_of_the_servers_model(
    server: FaultyPoolingServer,
) -> None:
    found = {(await started(server)).identity}
    server.root = "rewards/other"
    found.add((await started(server)).identity)
    server.models = ["renamed"]
    found.add((await started(server)).identity)
    assert len(found) == 3


async def test_with_the_folder_the_identity_is_of_its_files(
    server: FaultyPoolingServer, folder: Path
) -> None:
    first = (await started(server, path=folder)).identity
    server.root, server.models = "rewards/other", ["renamed"]
    assert (await started(server, path=folder)).identity == first
    (folder / "config.json").write_text('{"num_labels": 1}')
    assert (await started(server, path=folder)).identity != first


async def test_before_the_start_it_has_a_name_and_no_identity() -> None:
    scorer = build_scorer(PoolingScorerConfig(url="http://gpu-1:8001/v1/"))
    assert scorer.name == "http://gpu-1:8001"
    with pytest.raises(ScoringError, match="has not been started"):
        _ = scorer.identity
    with pytest.raises(ScoringError, match="not running"):
        await scorer.score([[Message("user", "a")]], ["b"])
    await scorer.close()
