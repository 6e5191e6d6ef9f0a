"""One table from exceptions to HTTP; what nobody expected is a 500 in the same shape."""

import inspect
import logging

import pytest
from running_gateway import MakeConfig, Run

import bond_core.errors
from bond_core.engines.fake import FakeEngine
from bond_core.errors import (
    BondError,
    ConfigError,
    ModelLoadError,
    PolicyStateError,
    QuotingError,
)
from bond_server.errors import ERROR_TABLE

UNMAPPED = {ConfigError, ModelLoadError, PolicyStateError, QuotingError}
"""Only met while starting or in the controller, or never itself; a request that met one would be a
defect."""


def test_every_error_has_a_row_that_comes_before_its_parents() -> None:
    classes = [
        c for _, c in inspect.getmembers(bond_core.errors, inspect.isclass)
        if issubclass(c, BondError)
    ]  # fmt: skip
    rows = [row.error for row in ERROR_TABLE]
    assert len(set(rows)) == len(rows)
    for index, row in enumerate(rows):
        assert not any(issubclass(later, row) for later in rows[index + 1 :])
    for error in {*classes} - {BondError} - UNMAPPED:
        assert next(row for row in rows if issubclass(error, row)) is not BondError


async def test_a_defect_is_a_500_that_names_the_request_and_logs_the_traceback(
    run: Run, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with run(make_config()) as running:
        engine = running.gateway.engine
        assert isinstance(engine, FakeEngine)
        engine.failure = ZeroDivisionError("a defect")  # type: ignore[assignment]
        with caplog.at_level(logging.ERROR):
            response = await running.client.post(
                "/v1/distilled",
                json={"messages": [{"role": "user", "content": "hi"}]},
                headers={"x-request-id": "request-9"},
            )
        assert running.metric("bond_requests_total", arm="distilled", status="failed") == 1
        assert (
            running.metric(
                "bond_http_requests_total", route="/v1/distilled", method="POST", code="500"
            )
            == 1
        )
        engine.failure = None
        assert (await running.post("/v1/distilled")).status_code == 200
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "request-9"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "request-9" in error["message"]
    assert "defect" not in error["message"]
    [record] = [r for r in caplog.records if r.name == "bond_server.asgi"]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
