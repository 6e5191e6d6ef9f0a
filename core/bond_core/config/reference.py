"""The reference page of all settings, made from the models themselves.

`python -m bond_core.config.reference` prints `docs/configuration.md`; a test compares the two, so
that a setting cannot be added, changed or removed without its page.
"""

import sys
import types
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bond_core.config.loading import ENV_NESTING, ENV_PREFIX, BondConfig

_HEADER = f"""# Configuration

One file, `bond.yaml`, for gateway and trainer; `bond serve --config bond.yaml`. Flags win over
environment variables, those over the file, the file over the defaults below. A variable is the
key in capitals with `{ENV_PREFIX}` before it and `{ENV_NESTING}` between levels:
`{ENV_PREFIX}SERVER{ENV_NESTING}PORT=8081` sets `server.port`. Unknown keys and variables are
errors that name the nearest valid one. Relative paths in a file are relative to the file.
"""


def render() -> str:
    """The page, as Markdown."""
    return _HEADER + "".join(_section("", BondConfig, "Top level", {}))


def _section(prefix: str, model: type[BaseModel], title: str, written: dict[Any, str]) -> list[str]:
    rows: list[str] = []
    nested: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        children = _models(field.annotation)
        tagged = [child for child in children if "type" in child.model_fields]
        if not children:
            rows.append(
                f"| `{key}` | {_type(field.annotation)} | {_default(field)} | {_text(field)} |"
            )
        if len(children) > 1 and (first := written.setdefault(tuple(children), key)) != key:
            optional = "none" if field.default is None else _default(field)
            rows.append(f"| `{key}` | as `{first}` | {optional} | {_text(field)} |")
            continue
        for child in children:
            kind = child.model_fields["type"].default if tagged else None
            heading = f"`{key}`" + (f" with `type: {kind}`" if len(tagged) > 1 else "")
            nested += _section(f"{key}.", child, heading, written)
    intro = _intro(model)
    table = ["\n| key | type | default | meaning |\n|---|---|---|---|\n", *(r + "\n" for r in rows)]
    return [f"\n## {title}\n\n{intro}\n", *(table if rows else []), *nested]


def _intro(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (list, dict):
        return []
    return [found for part in get_args(annotation) for found in _models(part)]


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type(get_args(annotation)[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation))
    if annotation is type(None):
        return "nothing"
    if origin is list:
        return f"list of {_type(get_args(annotation)[0])}"
    names = {str: "text", int: "integer", float: "number", bool: "yes or no", Path: "path"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _text(field: FieldInfo) -> str:
    bounds = [
        f"{word} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, word in (("ge", "at least"), ("gt", "over"), ("le", "at most"), ("lt", "under"))
        if getattr(constraint, name, None) is not None
    ]
    text = " ".join((field.description or "").split())
    return " ".join(part for part in (text, f"({', '.join(bounds)})" if bounds else "") if part)


if __name__ == "__main__":
    sys.stdout.write(render())
