"""The file `bond.yaml` as plain values: every key once, paths relative to the file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from bond_core.errors import ConfigError

_PATHS = (
    "model.path",
    "scorer.path",
    "judge.path",
    "gold.path",
    "data_dir",
    "trainer.evaluation.gate_prompts",
    "trainer.evaluation.report_prompts",
    "trainer.gate.suite.prompts",
    "trainer.objective.teacher",
)
"""Not `engine.adapters_path`, which is where the servers see it."""
_FUNCTIONS = (
    "scorer.function",
    "judge.function",
    "gold.function",
    "store.redact",
    "trainer.gate.suite.function",
)
_NO_PATH = {"trainer.objective.teacher": "active"}
_MERGE = "tag:yaml.org,2002:merge"


def read_file(path: Path) -> dict[str, Any]:
    """The values of a configuration file. Raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
        root = cast(
            yaml.Node | None,
            # PyYAML's stubs leave out the type of what compose takes
            yaml.compose(text, yaml.SafeLoader),  # pyright: ignore[reportUnknownMemberType]
        )
        _refuse_doubled_keys(root, path, set())
        loaded = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold a mapping of sections such as 'model:' and 'scorer:'")
    _refuse_odd_keys(cast(dict[object, object], loaded), path)
    values = cast(dict[str, Any], loaded)
    place_paths(values, lambda relative: path.parent / relative.expanduser())
    return values


def place_paths(values: dict[str, Any], place: Callable[[Path], Path]) -> None:
    """Replace every path in a configuration's values, those of functions' files included."""
    for key in _PATHS:
        holder, name = _holder_of(values, key)
        if holder is not None and holder[name] != _NO_PATH.get(key):
            holder[name] = str(place(Path(holder[name])))
    for key in _FUNCTIONS:
        holder, name = _holder_of(values, key)
        if holder is not None and ".py:" in holder[name]:
            file, _, function = holder[name].rpartition(":")
            holder[name] = f"{place(Path(file))}:{function}"


def _holder_of(values: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The section that has a dotted key, and the key's last part; no section if it has no text."""
    *sections, name = key.split(".")
    holder: Any = values
    for section in sections:
        holder = cast(dict[str, Any], holder).get(section) if isinstance(holder, dict) else None
    if not isinstance(holder, dict):
        return None, name
    found = cast(dict[str, Any], holder)
    return (found if isinstance(found.get(name), str) else None), name


def _refuse_doubled_keys(node: yaml.Node | None, path: Path, seen: set[int]) -> None:
    """YAML's reader takes the last of two equal keys, and what the first one said is lost."""
    if node is None or id(node) in seen:  # an alias may lead back
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in cast(list[yaml.Node], node.value):
            _refuse_doubled_keys(item, path, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in cast(list[tuple[yaml.Node, yaml.Node]], node.value):
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(
                    f"{path} has the key {name!r} twice, in line {lines[name]} and in line {line}: "
                    "put what they say under one"
                )
            lines[name] = line
        _refuse_doubled_keys(value, path, seen)


def _refuse_odd_keys(mapping: Mapping[object, object], path: Path) -> None:
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise ConfigError(f"{path}: the key {key!r} is not text; put it in quotes")
        if isinstance(value, Mapping):
            _refuse_odd_keys(cast(Mapping[object, object], value), path)
