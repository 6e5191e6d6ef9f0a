"""Publish one version in a trainer's container: a LoRA of random numbers with a true probe.

Run with tests/ on the module path, as `python publish_version.py v0001`.
"""

import asyncio
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from published_adapters import challenger, publish
from transformers import AutoModelForCausalLM

from bond_core.config import BondConfig, LocalEngineConfig, load_config
from bond_core.store import open_store

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


async def published(config: BondConfig, version: str) -> None:
    """Write the version's directory, then its row, as a trainer does; a gateway promotes it."""

    def save(directory: Path) -> None:
        torch.manual_seed(int(version[1:]))
        base = AutoModelForCausalLM.from_pretrained(str(config.model.path))
        model = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.05)
        model.save_pretrained(str(directory), save_embedding_layers=False)

    path = await publish(config, version, save=save)
    store = await open_store(config.store_url, migrate=False)
    try:
        await store.policies.insert(challenger(version, path))
    finally:
        await store.close()


file = load_config(Path("/etc/bondserve/bond.yaml"))
asyncio.run(published(file.model_copy(update={"engine": LocalEngineConfig()}), sys.argv[1]))
