"""Writing and checking adapter directories.

A directory appears whole or not at all: it is written under a temporary name, synced, checked by
its own manifest, and renamed. Nothing changes it afterwards; a new version is a new directory.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from bond_core.adapters.manifest import Manifest
from bond_core.errors import AdapterError

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
_TEMPORARY_PREFIX = ".writing-"
_VERSION = re.compile(r"v[0-9]{1,9}")


def adapter_path(adapters_dir: Path, version: str) -> Path:
    """Where a version lives. Raises `AdapterError` for a name that could leave the directory."""
    if _VERSION.fullmatch(version) is None:
        raise AdapterError(f"{version!r} is not a policy version: expected a name such as v0007")
    return adapters_dir / version


def write_adapter(adapters_dir: Path, manifest: Manifest, save: Callable[[Path], None]) -> Path:
    """Write one version atomically and return its directory.

    `save(directory)` writes the PEFT files into a temporary directory; the manifest with the
    weights' checksum is added last. Raises `AdapterError` if the version exists already or `save`
    left out a file.
    """
    final = adapter_path(adapters_dir, manifest.version)
    if final.exists():
        raise AdapterError(f"{final} exists already; versions are never overwritten")
    adapters_dir.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=adapters_dir))
    try:
        save(temporary)
        _require_files(temporary, WEIGHTS_FILE, ADAPTER_CONFIG_FILE)
        complete = manifest.model_copy(update={"weights_sha256": _sha256(temporary / WEIGHTS_FILE)})
        (temporary / MANIFEST_FILE).write_text(complete.model_dump_json(indent=1) + "\n")
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from an engine of another user
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        temporary.rename(final)
        _sync(adapters_dir)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def remove_leftovers(adapters_dir: Path) -> list[str]:
    """Delete what an interrupted writer left; returns the names. Only the one trainer calls it."""
    leftovers = sorted(p for p in adapters_dir.glob(f"{_TEMPORARY_PREFIX}*") if p.is_dir())
    for path in leftovers:
        shutil.rmtree(path)
    return [path.name for path in leftovers]


def read_manifest(path: Path) -> Manifest:
    """The manifest of an adapter directory. Raises `AdapterError` naming what is wrong."""
    _require_files(path, MANIFEST_FILE)
    try:
        return Manifest.model_validate_json((path / MANIFEST_FILE).read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "document"
        raise AdapterError(f"{path / MANIFEST_FILE}: {where}: {problem['msg']}") from None


def verify_adapter(path: Path) -> Manifest:
    """Check that a directory is whole and unaltered, and return its manifest.

    Raises `AdapterError` if a file is missing or a link leads out of the adapters' directory, the
    weights are not those that the manifest names, the directory carries another version's
    manifest, or the adapter's configuration is not JSON.
    """
    _refuse_links_out(path)
    manifest = read_manifest(path)
    _require_files(path, WEIGHTS_FILE, ADAPTER_CONFIG_FILE)
    if manifest.version != path.name:
        raise AdapterError(f"{path} holds the manifest of {manifest.version}: it was moved")
    found = _sha256(path / WEIGHTS_FILE)
    if found != manifest.weights_sha256:
        raise AdapterError(
            f"{path / WEIGHTS_FILE} has checksum {found[:12]}…, its manifest says "
            f"{manifest.weights_sha256[:12]}…: it was altered or is incomplete; remove the "
            "directory and let the trainer write a new version"
        )
    try:
        json.loads((path / ADAPTER_CONFIG_FILE).read_bytes())
    except ValueError as error:
        raise AdapterError(f"{path / ADAPTER_CONFIG_FILE} is not JSON: {error}") from None
    return manifest


def check_base(manifest: Manifest, base_revision: str) -> None:
    """Raise `AdapterError` if the version was made for other base weights than these.

    `base_revision` is `EngineInfo.base_revision`; empty, if the engine does not know its own,
    nothing is compared.
    """
    if base_revision and manifest.base_revision != base_revision:
        raise AdapterError(
            f"{manifest.version} was made for another base model: its manifest says revision "
            f"{manifest.base_revision[:12] or 'none'}, the model's folder is {base_revision[:12]}: "
            "put the old weights back, or start with a fresh data_dir"
        )


def _refuse_links_out(path: Path) -> None:
    home = path.parent.resolve()
    for inside in (path, *(path.iterdir() if path.is_dir() else ())):
        if not inside.resolve().is_relative_to(home):
            raise AdapterError(
                f"{inside} leads out of {home}, to {inside.resolve()}: a version is a directory "
                "of its own files; remove the link"
            )


def _require_files(path: Path, *names: str) -> None:
    if not path.is_dir():
        raise AdapterError(f"no adapter directory at {path}")
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise AdapterError(f"{path} is half written: {', '.join(missing)} missing")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
