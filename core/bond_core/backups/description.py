"""What a backup says of itself."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from bond_core.errors import ConfigError
from bond_core.store.copies import DatabaseKind

DESCRIPTION_FILE = "backup.json"
ADAPTERS_FOLDER = "adapters"
CHECKPOINTS_FOLDER = "checkpoints"
RUN_ID_FILE = "run_id"
"""Beside the checkpoints: whose claims in the store are the trainer's own."""


class Description(BaseModel):
    """`backup.json`; written last, so that its absence means an unfinished backup."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    created_at: float
    """Unix seconds, when the database was read."""
    release: str
    """Of bondserve."""
    database: DatabaseKind
    revision: str
    """Of the schema."""
    versions: list[str]
    """Policy versions whose adapters are there."""
    checkpoint: str | None
    """Name of the trainer's checkpoint, if it had one."""


def read_description(folder: Path) -> Description:
    """Raises `ConfigError` for a folder that is no finished backup."""
    file = folder / DESCRIPTION_FILE
    try:
        return Description.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} is no finished backup: it has no {DESCRIPTION_FILE}; name the folder that "
            "`bond db backup` was given, or an older one"
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or "document"
        raise ConfigError(f"{file}: {where}: {problem['msg']}") from None
