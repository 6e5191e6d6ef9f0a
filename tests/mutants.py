"""Mutants: a module of ours with one deliberate error, to show that a test would notice it."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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


@contextmanager
def mutant_seen_by(
    module: ModuleType, original: str, replacement: str, users: Sequence[ModuleType]
) -> Iterator[ModuleType]:
    """A copy of the last of `users`, each of which imports from those before it and, the first,
    from the module: all of them copies that see the mutant."""
    with ExitStack() as stack:
        wrong = stack.enter_context(mutant(module, original, replacement))
        copies = {module.__name__: wrong}
        for user in users:
            name = f"{user.__name__}_mutant"
            copy = ModuleType(name)
            sys.modules[name] = copy
            stack.callback(sys.modules.pop, name)
            source = inspect.getsource(user)
            for sound, changed in copies.items():
                source = source.replace(f"from {sound} import", f"from {changed.__name__} import")
            exec(compile(source, name, "exec"), copy.__dict__)
            copies[user.__name__] = wrong = copy
        yield wrong
