"""An engine under which some names stand for versions that change.

`policy` and `anchor` are what the learner has published last. A server must not be given other
weights under a name that it knows, so each publication has a name of its own there, and these two
move from one to the next.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from bond_core.engines.base import Check, Engine, EngineInfo, Partial
from bond_core.types import Conversation, Generation, SamplingParams, TextDelta


class NamedVersions:
    """The engine protocol over another engine. What stands behind a name is not listed itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._behind: Mapping[str, str] = {}

    def behind(self) -> Mapping[str, str]:
        """The version behind each name."""
        return self._behind

    def point(self, names: Mapping[str, str]) -> None:
        """Let each name stand for a loaded version from now on, all of them at once."""
        self._behind = dict(names)

    @property
    def info(self) -> EngineInfo:
        """That of the engine below."""
        return self._engine.info

    async def start(self) -> None:
        """Start the engine below."""
        await self._engine.start()

    async def generate(
        self,
        version: str,
        prompt: Conversation,
        params: SamplingParams,
        n: int = 1,
        partial: Partial | None = None,
    ) -> Generation:
        """See `Engine.generate`."""
        return await self._engine.generate(self._of(version), prompt, params, n, partial)

    def stream(
        self, version: str, prompt: Conversation, params: SamplingParams
    ) -> AsyncIterator[TextDelta]:
        """See `Engine.stream`."""
        return self._engine.stream(self._of(version), prompt, params)

    async def token_logprobs(
        self,
        version: str,
        prompt_token_ids: Sequence[int],
        completions: Sequence[Sequence[int]],
        temperature: float = 1.0,
    ) -> list[tuple[float, ...]]:
        """See `Engine.token_logprobs`."""
        return await self._engine.token_logprobs(
            self._of(version), prompt_token_ids, completions, temperature
        )

    async def count_prompt_tokens(self, prompt: Conversation) -> int:
        """See `Engine.count_prompt_tokens`."""
        return await self._engine.count_prompt_tokens(prompt)

    async def load_adapter(self, version: str, path: Path, check: Check | None = None) -> None:
        """See `Engine.load_adapter`."""
        await self._engine.load_adapter(version, path, check)

    async def drop_adapter(self, version: str) -> None:
        """See `Engine.drop_adapter`."""
        await self._engine.drop_adapter(version)

    async def loaded_versions(self) -> list[str]:
        """Names that `generate` accepts now: the reference first, then the versions, the moving
        names last."""
        loaded = await self._engine.loaded_versions()
        return [v for v in loaded if v not in self._behind.values()] + list(self._behind)

    async def health(self) -> bool:
        """See `Engine.health`."""
        return await self._engine.health()

    async def close(self) -> None:
        """Close the engine below."""
        await self._engine.close()

    def _of(self, version: str) -> str:
        return self._behind.get(version, version)
