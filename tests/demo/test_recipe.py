"""The recipe, from nothing to a whole world, with small numbers."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bond_core.errors import ModelLoadError
from bond_demo import recipe
from bond_demo.making import sampler
from bond_demo.recipe import STAGES, make_world

SMALL = {
    "POLICY_QUESTIONS": 64,
    "POLICY_EPOCHS": 1,
    "REWARD_PROMPTS": 8,
    "REWARD_EPOCHS": 1,
    "GATE_PROMPTS": 6,
    "REPORT_PROMPTS": 4,
    "LOG_PROMPTS": 5,
    "CURVE_SAMPLES": 16,
}


@pytest.fixture
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's counts, reduced."""
    for name, value in SMALL.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(sampler, "MAX_NEW_TOKENS", 20)  # an untrained policy seldom ends by itself


@pytest.mark.usefixtures("small_numbers")
def test_a_whole_world_is_made_twice_alike(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_world(first, list(STAGES))
    make_world(second, list(STAGES))
    made = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    names = {str(path) for path in made}
    assert {"curve.json", "MODEL_CARD.md", "seed_log.jsonl.gz", "prompts/gate.jsonl"} <= names
    for path in made:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path
    AutoModelForCausalLM.from_pretrained(first / "policy", local_files_only=True)
    for name in ("proxy", "judge"):
        AutoModelForSequenceClassification.from_pretrained(first / name, local_files_only=True)
    weights = [(first / name / "model.safetensors").read_bytes() for name in ("proxy", "judge")]
    assert weights[0] != weights[1]
    assert json.loads((first / "curve.json").read_text())["prompts"] == 4
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("small_numbers")
def test_one_stage_is_made_again_and_the_rest_kept(tmp_path: Path) -> None:
    world = tmp_path / "world"
    make_world(world, ["prompts"])
    (world / "note.txt").write_text("kept")
    (world / "prompts" / "gate.jsonl").write_text("")
    make_world(world, ["prompts"])
    assert (world / "note.txt").read_text() == "kept"
    assert len((world / "prompts" / "gate.jsonl").read_text().splitlines()) == 6


def test_a_stage_that_misses_another_says_so_and_leaves_the_world_alone(tmp_path: Path) -> None:
    world = tmp_path / "world"
    make_world(world, ["prompts"])
    with pytest.raises(ModelLoadError, match="run the stage `policy` first"):
        make_world(world, ["log"])
    assert [path.name for path in world.iterdir()] == ["prompts"]
