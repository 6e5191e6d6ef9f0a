"""What is refused before the first request."""

import json
import shutil
from pathlib import Path

import pytest

from bond_core.engines.vllm.inspection import Abilities
from bond_core.engines.vllm.opening import refuse_other_weights
from bond_core.engines.vllm.replica import ServedModel
from bond_core.errors import ModelLoadError


def serving(root: str) -> list[Abilities]:
    return [Abilities(ServedModel("m", root, 256, "0.32.0"), True, True, 8)]


def test_a_served_folder_of_other_weights_is_refused(
    tiny_policy_path: Path, tmp_path: Path
) -> None:
    """Tokenizer and template agree, so nothing else would tell before an adapter is probed."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_policy_path, copy)
    refuse_other_weights(serving(str(copy)), tiny_policy_path)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    with pytest.raises(ModelLoadError, match="name the folder that it serves"):
        refuse_other_weights(serving(str(copy)), tiny_policy_path)


@pytest.mark.parametrize("root", ["", "Qwen/Qwen3-8B", "/models/on/another/machine"])
def test_of_a_folder_elsewhere_nothing_is_said(
    root: str, tiny_policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr("bond_core.engines.vllm.opening.model_digest", read.append)
    refuse_other_weights(serving(root), tiny_policy_path)
    assert read == []  # no weights were compared
