"""What every configuration section shares: it is closed and frozen."""

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def http_url(value: str) -> str:
    """The base URL without the slash and the `/v1` that people add. Raises `ValueError`."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value!r} is no URL of a server: expected one as http://host:8000")
    return value.rstrip("/").removesuffix("/v1")
