"""Mutants: a module of ours with one deliberate error, to show that a test would notice it."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def mutant(module: ModuleType, original: str, replacement: str) -> Iterator[ModuleType]:
    """A copy of the module in which the one occurrence of `original` is replaced."""
    source = inspect.getsource(module)
    if source.count(original) != 1:
        raise AssertionError(
            f"{module.__name__} has {source.count(original)} times {original!r}; the mutation "
            "must follow the code"
        )
    name = f"{module.__name__}_mutant"
    copy = ModuleType(name)
    sys.modules[name] = copy  # dataclasses look their module up
    try:
        exec(compile(source.replace(original, replacement), name, "exec"), copy.__dict__)
        yield copy
    finally:
        del sys.modules[name]
