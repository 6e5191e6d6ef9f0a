"""The whole path on a real model: a LoRA directory is probed, goes live, and answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_adapters import challenger, publish
from running_gateway import MakeConfig, Run, row_id, settled, until_active, until_state
from tiny_models import tiny_adapter

from bond_core.adapters import MANIFEST_FILE, WEIGHTS_FILE
from bond_core.config import BondConfig
from bond_core.types import PolicyState

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def config(make_config: MakeConfig, tiny_policy_path: Path) -> BondConfig:
    return make_config(
        model={"path": str(tiny_policy_path), "name": "tiny"},
        engine={"type": "local", "max_adapters": 3},
        sampling={"max_tokens": 16},
    )


async def test_a_lora_adapter_is_promoted_and_a_false_one_is_refused(
    run: Run, config: BondConfig
) -> None:
    def save(seed: int) -> Callable[[Path], object]:
        return lambda directory: tiny_adapter(directory, seed=seed, scale=0.2)

    first = await publish(config, "v0001", save=save(1))
    # the directory of the second holds the weights of a third: what a mixed-up copy serves
    second = await publish(config, "v0002", save=save(2), parent="v0001")
    third = await publish(config, "v0003", save=save(3), parent="v0001")
    async with run(config) as running:
        policies = running.gateway.store.policies
        reference = (await running.post("/v1/distilled", seed=3)).json()
        await policies.insert(challenger("v0001", first))
        await until_active(running, "v0001")
        distilled = (await running.post("/v1/distilled", seed=3)).json()
        await settled(running)
        record = await running.gateway.store.completions.get(row_id(distilled))

        swap_weights(second, third)
        await policies.insert(challenger("v0002", second, "v0001"))
        reason = await until_state(running, "v0002", PolicyState.REJECTED)
        again = (await running.post("/v1/distilled", seed=3)).json()
        loaded = await running.gateway.engine.loaded_versions()
    assert reference["bond"]["version"] == "v0000"
    assert distilled["bond"]["version"] == "v0001"
    assert text(distilled) != text(reference)
    assert text(again) == text(distilled)
    assert record is not None
    assert record.log_ratio is not None
    assert abs(record.log_ratio) > 0.01
    assert "nats per answer away from it" in reason
    assert loaded == ["v0000", "v0001"]


def swap_weights(directory: Path, other: Path) -> None:
    """Put another version's weights into a directory, checksum and all."""
    (directory / WEIGHTS_FILE).write_bytes((other / WEIGHTS_FILE).read_bytes())
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    theirs = json.loads((other / MANIFEST_FILE).read_text())
    manifest["weights_sha256"] = theirs["weights_sha256"]
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


def text(body: dict[str, Any]) -> str:
    return body["choices"][0]["message"]["content"]
