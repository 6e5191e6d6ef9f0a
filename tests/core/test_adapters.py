"""Adapter directories appear whole or not at all; the probe tells versions apart."""

import hashlib
import json
from pathlib import Path

import pytest

from bond_core.adapters import (
    Manifest,
    ProbeCase,
    adapter_path,
    check_base,
    judge_probe,
    read_manifest,
    remove_leftovers,
    verify_adapter,
    write_adapter,
)
from bond_core.errors import AdapterError, ProbeError


def manifest(version: str = "v0001") -> Manifest:
    case = ProbeCase(
        prompt_token_ids=[1], completion_token_ids=[2], this=-10.0, parent=-12.0, reference=-16.0
    )
    return Manifest(
        version=version,
        parent="v0000",
        base_model="tiny",
        tokenizer_sha256="0" * 64,
        step=3,
        created_at=1.0,
        objective={"type": "jbond"},
        sampling={"temperature": 1.0},
        probe=[case],
    )


def save(directory: Path) -> None:
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    (directory / "adapter_config.json").write_text("{}")


def test_a_written_adapter_verifies_and_carries_its_checksum(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, manifest(), save)
    assert path == tmp_path / "v0001"
    found = verify_adapter(path)
    assert found.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert found == manifest().model_copy(update={"weights_sha256": found.weights_sha256})
    assert sorted(p.name for p in path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    write_adapter(tmp_path, manifest(), save)
    with pytest.raises(AdapterError, match="never overwritten"):
        write_adapter(tmp_path, manifest(), save)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def broken(directory: Path) -> None:
        save(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_adapter(tmp_path, manifest(), broken)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_forgets_the_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors"):
        write_adapter(tmp_path, manifest(), lambda d: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["manifest.json", "adapter_model.safetensors"])
def test_a_half_written_directory_is_refused(tmp_path: Path, name: str) -> None:
    path = write_adapter(tmp_path, manifest(), save)
    (path / name).unlink()
    with pytest.raises(AdapterError, match=f"half written: {name}"):
        verify_adapter(path)


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, manifest(), save)
    (path / "adapter_model.safetensors").write_bytes(b"weightz")
    with pytest.raises(AdapterError, match="checksum"):
        verify_adapter(path)


def test_a_moved_directory_is_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, manifest(), save)
    moved = path.rename(tmp_path / "v0002")
    with pytest.raises(AdapterError, match="manifest of v0001"):
        verify_adapter(moved)


def test_a_manifest_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, manifest(), save)
    values = json.loads((path / "manifest.json").read_text()) | {"stepp": 1}
    (path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(AdapterError, match="stepp"):
        read_manifest(path)


@pytest.mark.parametrize(
    "name", ["../v0001", "v", "v1/../..", "latest", "v\u0663", "v1\n", "v1\x00", "", "/etc", "v1/"]
)
def test_names_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="not a policy version"):
        adapter_path(tmp_path, name)


def test_a_version_of_another_base_is_refused() -> None:
    made_for = manifest().model_copy(update={"base_revision": "a" * 64})
    check_base(made_for, "a" * 64)
    check_base(made_for, "")  # an engine that does not know its own
    with pytest.raises(
        AdapterError, match=r"revision aaaaaaaaaaaa, .* is bbbbbbbbbbbb: .*data_dir"
    ):
        check_base(made_for, "b" * 64)
    with pytest.raises(AdapterError, match="revision none"):
        check_base(manifest(), "b" * 64)


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-abc").mkdir()
    kept = write_adapter(tmp_path, manifest(), save)
    assert remove_leftovers(tmp_path) == [".writing-abc"]
    assert list(tmp_path.iterdir()) == [kept]


def test_the_probe_accepts_the_version_itself() -> None:
    report = judge_probe("v0001", manifest().probe, [-10.3], noise_nats=1e-3)
    assert report.distance == pytest.approx(0.3)
    assert (report.nearest, report.distance_to_nearest) == ("parent", 2.0)


@pytest.mark.parametrize(
    ("served", "why"), [(-12.0, "parent"), (-16.0, "parent"), (-10.51, "parent")]
)
def test_the_probe_refuses_another_policy_under_the_name(served: float, why: str) -> None:
    with pytest.raises(ProbeError, match=why):
        judge_probe("v0001", manifest().probe, [served], noise_nats=1e-3)


def test_the_probe_refuses_what_it_cannot_tell_apart() -> None:
    with pytest.raises(ProbeError, match="indistinguishable"):
        judge_probe("v0001", manifest().probe, [-10.0], noise_nats=0.5)


def test_the_probe_refuses_infinite_values_and_an_empty_probe() -> None:
    with pytest.raises(ProbeError, match="not finite"):
        judge_probe("v0001", manifest().probe, [float("-inf")], noise_nats=1e-3)
    with pytest.raises(ProbeError, match="no probe"):
        judge_probe("v0001", [], [], noise_nats=1e-3)


def test_a_manifest_whose_probe_is_not_a_number_is_refused(tmp_path: Path) -> None:
    path = write_adapter(tmp_path, manifest(), save)
    file = path / "manifest.json"
    file.write_text(file.read_text().replace("-10.0", "NaN"))
    with pytest.raises(AdapterError, match=r"manifest\.json"):
        verify_adapter(path)


def test_the_probe_does_not_let_nan_pass() -> None:
    case = manifest().probe[0].model_copy(update={"this": float("nan")})
    with pytest.raises(ProbeError):
        judge_probe("v0001", [case], [-10.0], noise_nats=1e-3)
