"""A Python function of the user's own as scorer, in the form that TRL's trainers take."""

import asyncio
import hashlib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

from bond_core.config import FunctionScorerConfig
from bond_core.errors import ModelLoadError, ScoringError
from bond_core.fingerprints import files_digest
from bond_core.rewards.user_thread import Raised, UserThread
from bond_core.types import Conversation

_Turns = list[dict[str, str]]


class FunctionScorer:
    """Calls `function(prompts=..., completions=...)` with conversations in TRL's form.

    A prompt is a list of `{"role", "content"}`, a completion the list of the one assistant turn.
    Plain functions run in a worker thread, one call at a time; `async def` functions are awaited.
    Whatever the function raises is a `ScoringError`, `SystemExit` included, and so is a call that
    takes longer than `timeout_s`.
    """

    def __init__(self, config: FunctionScorerConfig) -> None:
        self._target = config.function
        self._function: Callable[..., Any] | None = None
        self._identity: str | None = None
        self._timeout_s = config.timeout_s
        self._worker: UserThread | None = None
        self._given: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], timeout_s: float = 60.0) -> "FunctionScorer":
        """Over a function at hand, such as one of a notebook.

        Its identity is that of its compiled code, so that changing it counts as another scorer.
        """
        name = getattr(function, "__qualname__", type(function).__name__)
        scorer = cls(FunctionScorerConfig(function="given:function", timeout_s=timeout_s))
        scorer._target = f"{getattr(function, '__module__', None) or 'given'}:{name}"
        scorer._given = function
        return scorer

    @property
    def name(self) -> str:
        """The function's target, as configured."""
        return self._target

    @property
    def identity(self) -> str:
        """See `Scorer.identity`: of the name, and the source files of function and module.

        What those import or read does not count: after a change of that, edit a line of theirs.
        """
        if self._identity is None:
            raise ScoringError(f"scorer {self._target} has not been started: await start()")
        return self._identity

    async def start(self) -> None:
        """Import the function. Raises `ModelLoadError` naming what is wrong with the target."""
        self._worker = UserThread()
        if self._given is not None:
            code = getattr(self._given, "__code__", None)
            text = f"{self._target} {code.co_code.hex() + repr(code.co_consts) if code else ''}"
            self._identity = hashlib.sha256(text.encode()).hexdigest()
            self._function = self._given
            return
        try:
            function = await self._loaded(self._worker)
            self._identity = await asyncio.to_thread(_identity_of, self._target, function)
            self._function = function
        except ModelLoadError:
            await self.close()
            raise

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        """See `Scorer.score`. Pairs that occur twice are passed once."""
        if len(prompts) != len(completions):
            raise ScoringError(f"{len(prompts)} prompts and {len(completions)} completions")
        function, worker = self._function, self._worker
        if function is None or worker is None:
            raise ScoringError(f"scorer {self._target} is not running: await start()")
        pairs = [(tuple(p), c) for p, c in zip(prompts, completions, strict=True)]
        unique = list(dict.fromkeys(pairs))
        if not unique:
            return []
        asked: list[_Turns] = [[message.as_dict() for message in prompt] for prompt, _ in unique]
        answers: list[_Turns] = [[{"role": "assistant", "content": c}] for _, c in unique]
        returned = await self._call(function, worker, asked, answers)
        scores = dict(zip(unique, self._checked(returned, len(unique)), strict=True))
        return [scores[pair] for pair in pairs]

    async def close(self) -> None:
        """End the worker thread. A call that hangs is left behind."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    async def _loaded(self, worker: UserThread) -> Callable[..., Any]:
        loaded = await worker.call(lambda: load_function(self._target), None)
        if not isinstance(loaded, Raised):
            return cast("Callable[..., Any]", loaded)
        if isinstance(loaded.error, ModelLoadError):
            raise loaded.error
        raise ModelLoadError(
            f"loading the reward function {self._target} raised "
            f"{type(loaded.error).__name__}: {loaded.error}"
        ) from loaded.error

    async def _call(
        self,
        function: Callable[..., Any],
        worker: UserThread,
        prompts: list[_Turns],
        completions: list[_Turns],
    ) -> object:
        def call() -> Any:
            return function(prompts=prompts, completions=completions)

        try:
            if inspect.iscoroutinefunction(function):
                returned = await _awaited(call, self._timeout_s)
            else:
                returned = await worker.call(call, self._timeout_s)
        except TimeoutError as error:
            raise ScoringError(
                f"reward function {self._target} took longer than {self._timeout_s:g} s: make it "
                "faster or raise scorer.timeout_s"
            ) from error
        if isinstance(returned, Raised):
            raise ScoringError(
                f"reward function {self._target} raised "
                f"{type(returned.error).__name__}: {returned.error}",
                f"reward function {self._target} raised {type(returned.error).__name__}; what it "
                "said is in the row",
            ) from returned.error
        return returned

    def _checked(self, returned: object, count: int) -> list[float]:
        """The scores as finite floats. Raises `ScoringError` naming the first that is not."""
        to_list = getattr(returned, "tolist", None)  # arrays and tensors
        values: Any = to_list() if callable(to_list) else returned
        if not isinstance(values, list | tuple):
            raise ScoringError(
                f"reward function {self._target} returned {_shown(returned)}; it must return a "
                f"list of {count} numbers",
                f"reward function {self._target} returned no list of {count} numbers but a value "
                f"of type {type(returned).__name__}",
            )
        scores = cast("Sequence[object]", values)
        if len(scores) != count:
            raise ScoringError(
                f"reward function {self._target} returned {len(scores)} scores for {count} "
                "completions; it must return one for each, in order"
            )
        return [self._number(index, score) for index, score in enumerate(scores)]

    def _number(self, index: int, value: object) -> float:
        try:
            number = float(value)  # type: ignore[arg-type]  # anything may come back
        except (TypeError, ValueError) as error:
            raise ScoringError(
                f"reward function {self._target} returned {_shown(value)} for completion {index}; "
                "every score must be a number",
                f"reward function {self._target} returned a value of type {type(value).__name__} "
                f"for completion {index}; every score must be a number",
            ) from error
        except OverflowError:  # an integer beyond the largest float
            number = math.inf
        if not math.isfinite(number):
            raise ScoringError(
                f"reward function {self._target} returned {_shown(value)} for completion {index}; "
                "every score must be finite"
            )
        return number


async def _awaited(function: Callable[[], Any], timeout_s: float) -> object:
    """What a coroutine function returns, or `Raised`. Raises `TimeoutError` after that time."""
    task = asyncio.current_task()
    async with asyncio.timeout(timeout_s):
        try:
            return await function()
        except BaseException as error:  # the user's code may raise anything
            # Being cancelled by our caller, or by the timeout, is not the function's doing.
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            return Raised(error)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python does not spell out integers of more than 4300 digits
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def load_function(target: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:name` or `package.module:name`.

    Raises `ModelLoadError` if the file, the module or the name is missing, if importing it raises,
    or if it cannot be called.
    """
    location, _, name = target.rpartition(":")
    module = _load_file(Path(location)) if location.endswith(".py") else _import(location)
    function = getattr(module, name, None)
    if function is None:
        there = ", ".join(n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_")
        raise ModelLoadError(
            f"reward function {target}: {location} has no {name!r}; "
            f"it has {there or 'no functions'}"
        )
    if not callable(function):
        raise ModelLoadError(
            f"reward function {target}: {name!r} is a {type(function).__name__}, not a function"
        )
    return function


def _identity_of(target: str, function: Callable[..., Any]) -> str:
    """sha256 of the target with the contents of the files that it is written in.

    Those are the file or module of the target, and the one that the function was defined in, which
    is another if the module imports it.
    """
    location = target.rpartition(":")[0]
    files: set[Path] = set()
    named = location if location.endswith(".py") else sys.modules[location].__file__
    if named is not None:  # a built-in module has none
        files.add(Path(named).resolve())
    written: object = inspect.unwrap(function)
    candidates: list[Any] = [written, written.__class__]
    for candidate in candidates:
        try:
            defined = inspect.getsourcefile(candidate)
        except TypeError:  # an object with __call__: its class has the source; or it is built in
            continue
        if defined is not None and Path(defined).is_file():
            files.add(Path(defined).resolve())
            break
    return hashlib.sha256(f"{target} {files_digest(files)}".encode()).hexdigest()


class _FromSource(SourceFileLoader):
    """Compiles the file as it is now.

    Python takes compiled code that it kept for the same if second and size of the source are, so an
    edit of one letter within a second would be known by its digest and not be run.
    """

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file's own bytes."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelLoadError(
            f"the reward function's file {path} does not exist (looked in {Path.cwd()}); give its "
            "path as path/to/file.py:function"
        )
    # A name of its own, so that a file called json.py does not replace the standard library's.
    module_name = f"bond_reward_{path.stem}_{abs(hash(path.resolve()))}"
    loader = _FromSource(module_name, str(path))
    spec = importlib.util.spec_from_file_location(module_name, path, loader=loader)
    if spec is None or spec.loader is None:
        raise ModelLoadError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look the module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException as error:  # the user's code may raise anything, `SystemExit` too
        del sys.modules[module_name]
        raise ModelLoadError(
            f"importing the reward function's file {path} raised {type(error).__name__}: {error}"
        ) from error
    return module


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except BaseException as error:  # as above
        raise ModelLoadError(
            f"the reward function's module {name!r} cannot be imported: {type(error).__name__}: "
            f"{error}; install its package, or give a file as path/to/file.py:function"
        ) from error
