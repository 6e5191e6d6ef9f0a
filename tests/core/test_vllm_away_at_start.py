"""A start without any vLLM server tells each server's reason once."""

import json
import logging

import pytest
from faulty_vllm_server import MODEL, running_vllm, says
from kept_port import KeptPort

from bond_core.config import ModelConfig, VllmEngineConfig
from bond_core.engines.vllm import VllmEngine
from bond_core.errors import BondError


@pytest.mark.parametrize("number", [1, 2])
async def test_the_error_says_of_the_first_what_the_log_says_of_the_others(
    caplog: pytest.LogCaptureFixture, number: int
) -> None:
    caplog.set_level(logging.WARNING)
    ports = [KeptPort() for _ in range(number)]  # nobody listens there
    urls = [f"http://127.0.0.1:{port.number}" for port in ports]
    engine = VllmEngine(VllmEngineConfig(urls=urls), ModelConfig(name="tiny"))
    try:
        with pytest.raises(BondError) as none:
            await engine.start()
    finally:
        await engine.close()
        for port in ports:
            port.close()
    told = [record.getMessage() for record in caplog.records]
    assert urls[0] in none.value.message
    assert len(told) == number - 1
    for url, line in zip(urls[1:], told, strict=True):
        assert f"vLLM at {url} gets no requests" in line


async def test_the_log_has_the_words_of_a_server_that_refuses_the_trial(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    words = "there is no chat template: start with --chat-template"
    async with running_vllm() as good, running_vllm() as bad:
        bad.fault = says(json.dumps({"error": {"message": words}}), 400)
        config = VllmEngineConfig(urls=[good.url, bad.url])
        engine = VllmEngine(config, ModelConfig(name=MODEL))
        try:
            await engine.start()
            assert engine.servers() == {good.url: True, bad.url: False}
        finally:
            await engine.close()
    assert any(bad.url in r.getMessage() and words in r.getMessage() for r in caplog.records)
