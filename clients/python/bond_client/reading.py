"""Typed access to decoded JSON: a wrong shape is an error that names the field."""

from collections.abc import Mapping
from typing import TypeVar, cast

from bond_client.errors import BondProtocolError

Json = Mapping[str, object]
T = TypeVar("T")


class Reader:
    """One JSON object of an answer."""

    def __init__(self, value: object, where: str = "answer") -> None:
        if not isinstance(value, dict):
            raise BondProtocolError(f"{where}: expected a JSON object, got {_kind(value)}")
        self._values = cast(dict[str, object], value)
        self._where = where

    @property
    def raw(self) -> Json:
        """The object as it came."""
        return self._values

    def text(self, key: str) -> str:
        """A string."""
        value = self.maybe_text(key)
        return self._there(key, value)

    def maybe_text(self, key: str) -> str | None:
        """A string, or None if null or absent."""
        value = self._values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "a string", value)

    def number(self, key: str) -> float:
        """A number."""
        return self._there(key, self.maybe_number(key))

    def maybe_number(self, key: str) -> float | None:
        """A number, or None if null or absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise self._wrong(key, "a number", value)

    def integer(self, key: str) -> int:
        """A whole number."""
        value = self._values.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise self._wrong(key, "an integer", value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._values.get(key)
        if isinstance(value, bool):
            return value
        raise self._wrong(key, "true or false", value)

    def nested(self, key: str) -> "Reader":
        """An object."""
        return Reader(self._values.get(key), f"{self._where}.{key}")

    def maybe_nested(self, key: str) -> "Reader | None":
        """An object, or None if null or absent."""
        return None if self._values.get(key) is None else self.nested(key)

    def each(self, key: str) -> list["Reader"]:
        """A list of objects."""
        value = self._values.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "a list", value)
        return [
            Reader(item, f"{self._where}.{key}[{index}]")
            for index, item in enumerate(cast(list[object], value))
        ]

    def maybe_each(self, key: str) -> list["Reader"]:
        """A list of objects, empty if null or absent."""
        return [] if self._values.get(key) is None else self.each(key)

    def _there(self, key: str, value: T | None) -> T:
        if value is None:
            raise self._wrong(key, "a value", None)
        return value

    def _wrong(self, key: str, expected: str, value: object) -> BondProtocolError:
        return BondProtocolError(
            f"{self._where}.{key}: expected {expected}, got {_kind(value)}; is the server another "
            "version than this client?"
        )


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
