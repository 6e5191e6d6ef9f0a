"""A start without any vLLM server tells each server's reason once."""

import logging

import pytest
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
