"""Digests of what model folders and scorers were made from."""

import os
import shutil
from pathlib import Path

import pytest
from tiny_models import make_reward, make_tokenizer

from bond_core import fingerprints
from bond_core.config import ClassifierScorerConfig, FunctionScorerConfig, ScorerConfig
from bond_core.errors import ScoringError
from bond_core.fingerprints import (
    file_digest,
    files_digest,
    model_and_tokenizer_digest,
    model_digest,
)
from bond_core.rewards import build_scorer

REWARD = "def reward(prompts, completions):\n    return [1.0 for _ in completions]\n"


async def identity_of(config: ScorerConfig) -> str:
    scorer = build_scorer(config)
    with pytest.raises(ScoringError, match="has not been started"):
        _ = scorer.identity
    await scorer.start()
    await scorer.close()
    return scorer.identity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights" * 100)
    (path / "tokenizer.json").write_text("[]")
    return path


def test_a_model_is_its_configuration_and_weights(folder: Path, tmp_path: Path) -> None:
    before, whole = model_digest(folder), model_and_tokenizer_digest(folder)
    assert len(before) == 64
    assert before != whole
    copy = shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)
    assert (model_digest(copy), model_and_tokenizer_digest(copy)) == (before, whole)
    (folder / "README.md").write_text("a model card")
    (folder / "tokenizer.json").write_text("[1]")
    assert model_digest(folder) == before
    assert model_and_tokenizer_digest(folder) != whole
    stat = (folder / "model.safetensors").stat()
    (folder / "model.safetensors").write_bytes(b"Weights" * 100)
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert model_digest(folder) not in (before, whole)
    (copy / "config.json").write_text('{"a": 1}')
    assert model_digest(copy) != before


def test_what_is_too_large_counts_by_size_time_and_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = folder / "model.safetensors"
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 100)
    monkeypatch.setattr(fingerprints, "_END_BYTES", 8)

    def digest(content: bytes, time_ns: int) -> str:
        file.write_bytes(content)
        os.utime(file, ns=(time_ns, time_ns))
        return file_digest(file)

    content = b"a" * 700
    before = digest(content, 10**18)
    assert digest(content, 10**18) == before
    assert digest(b"a" * 300 + b"b" + b"a" * 399, 10**18) == before
    assert digest(content, 10**18 + 1000) != before
    assert digest(content + b"a", 10**18) != before
    assert digest(b"b" + content[1:], 10**18) != before
    assert digest(content[:-1] + b"b", 10**18) != before


def test_files_count_by_content_in_any_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    assert files_digest([one, two]) == files_digest([two, one]) != files_digest([one])


async def test_an_edited_function_is_another_scorer_by_the_same_name(tmp_path: Path) -> None:
    file = tmp_path / "rewards.py"
    file.write_text(REWARD)
    config = FunctionScorerConfig(function=f"{file}:reward")
    before = await identity_of(config)
    assert await identity_of(config) == before
    file.write_text(REWARD.replace("1.0", "2.0"))
    edited = await identity_of(config)
    assert edited != before
    file.write_text(REWARD + "\nsecond = reward\n")
    again = await identity_of(config)
    assert await identity_of(FunctionScorerConfig(function=f"{file}:second")) != again


async def test_a_function_from_another_module_counts_with_that_modules_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere, file = tmp_path / "bond_elsewhere.py", tmp_path / "rewards.py"
    elsewhere.write_text(
        REWARD + "\nclass Kind:\n    def __call__(self, prompts, completions):\n        return []\n"
    )
    file.write_text("from bond_elsewhere import Kind, reward\n\nkind = Kind()\n")
    targets = [FunctionScorerConfig(function=f"{file}:{name}") for name in ("reward", "kind")]
    targets.append(FunctionScorerConfig(function="bond_elsewhere:reward"))
    before = [await identity_of(config) for config in targets]
    elsewhere.write_text(elsewhere.read_text().replace("1.0", "2.0"))
    after = [await identity_of(config) for config in targets]
    assert len(set(before + after)) == 6
    file.write_text(file.read_text().replace("Kind()", "Kind()  # with other settings"))
    assert await identity_of(targets[1]) not in before + after


async def test_other_weights_in_the_folder_are_another_scorer(tmp_path: Path) -> None:
    path = make_reward(tmp_path / "reward", seed=1)
    config = ClassifierScorerConfig(path=path)
    before = await identity_of(config)
    make_reward(path, seed=2)
    other = await identity_of(config)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = f"{tokenizer.chat_template} "
    tokenizer.save_pretrained(path)
    assert len({before, other, await identity_of(config)}) == 3
