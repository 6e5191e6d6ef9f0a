"""Adapter versions as a trainer publishes them, with a probe measured on a real engine."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bond_core.adapters import Manifest, ProbeCase, adapter_path, write_adapter
from bond_core.config import BondConfig
from bond_core.engines import Engine, build_engine
from bond_core.store import PolicyRecord
from bond_core.types import REFERENCE_VERSION, Message, PolicyState, SamplingParams

PROBE_PROMPTS = ("where is my parcel?", "the lamp is broken", "thank you")


def fake_weights(directory: Path) -> None:
    """Files that the fake engine accepts; its law depends on the version's name alone."""
    (directory / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (directory / "adapter_model.safetensors").write_bytes(directory.name.encode())


async def publish(
    config: BondConfig,
    version: str,
    *,
    save: Callable[[Path], object] = fake_weights,
    parent: str = REFERENCE_VERSION,
    tokenizer_sha256: str | None = None,
    log_window: Mapping[str, int] | None = None,
) -> Path:
    """Write the directory of one version, with a true probe; returns it."""
    engine = build_engine(config.engine, config.model, adapters_dir=config.adapters_dir)
    await engine.start()
    try:
        scratch = config.data_dir / "scratch" / version
        scratch.mkdir(parents=True)
        save(scratch)
        await engine.load_adapter(version, scratch)
        if parent != REFERENCE_VERSION:
            await engine.load_adapter(parent, adapter_path(config.adapters_dir, parent))
        manifest = Manifest(
            version=version,
            parent=parent,
            base_model=engine.info.base_model,
            base_revision=engine.info.base_revision,
            tokenizer_sha256=tokenizer_sha256 or engine.info.tokenizer_sha256,
            step=int(version[1:]) * 10,
            created_at=time.time(),
            objective={"type": "jbond"},
            sampling=config.sampling.model_dump(),
            log_window=dict(log_window or {}),
            probe=[await _case(engine, text, version, parent) for text in PROBE_PROMPTS],
        )
    finally:
        await engine.close()
    return write_adapter(config.adapters_dir, manifest, lambda directory: save(directory) and None)


async def _case(engine: Engine, text: str, version: str, parent: str) -> ProbeCase:
    drawn = await engine.generate(
        version, [Message("user", text)], SamplingParams(max_tokens=12, seed=1)
    )
    tokens = drawn.completions[0].token_ids

    async def total(policy: str) -> float:
        [logprobs] = await engine.token_logprobs(policy, drawn.prompt_token_ids, [tokens])
        return sum(logprobs)

    return ProbeCase(
        prompt_token_ids=list(drawn.prompt_token_ids),
        completion_token_ids=list(tokens),
        this=await total(version),
        parent=await total(parent),
        reference=await total(REFERENCE_VERSION),
    )


def challenger(
    version: str, path: Path, parent: str = REFERENCE_VERSION, **evaluation: float
) -> PolicyRecord:
    """The row that the trainer inserts once the directory is whole."""
    now = time.time()
    return PolicyRecord(
        version=version,
        state=PolicyState.CHALLENGER,
        path=str(path),
        parent=parent,
        step=int(version[1:]) * 10,
        created_at=now,
        updated_at=now,
        reason="passed the gate",
        evaluation=evaluation,
    )
