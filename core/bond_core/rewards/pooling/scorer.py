"""The scorer over a pooling server."""

import asyncio
from collections.abc import Sequence

from bond_core.config import PoolingScorerConfig
from bond_core.errors import ModelLoadError, ScoringError
from bond_core.rewards.pooling.connected import Connected
from bond_core.rewards.pooling.rendering import RenderedHere, RenderedThere, Rendering
from bond_core.rewards.pooling.self_test import made_sure
from bond_core.rewards.pooling.server import PoolingServer, ServedModel
from bond_core.types import Conversation


class PoolingScorer:
    """Raw logits of a reward model that a vLLM server computes (`--runner pooling`).

    To be used in the event loop that it was started in. Conversations that occur twice in one call
    are asked once. A request is sent again only if its connection failed before an answer began.
    """

    def __init__(self, config: PoolingScorerConfig) -> None:
        self._config = config
        self._name = config.model_name or config.url
        self._connected: Connected | None = None
        self._identity: str | None = None

    @property
    def name(self) -> str:
        """The reward model's name at the server; before `start` the configured one, or the URL."""
        return self._name

    @property
    def identity(self) -> str:
        """See `Scorer.identity`: of the folder's files, or else the model's name and root at the
        server, and of two scores, so that other weights behind the same URL are another scorer."""
        if self._identity is None:
            raise ScoringError(f"scorer {self.name} has not been started: await start()")
        return self._identity

    async def start(self) -> None:
        """Connect, and make sure of the scores. Raises `ModelLoadError`."""
        server = PoolingServer(self._config)
        try:
            model = await server.model(self._config.model_name)
            rendering = await asyncio.to_thread(_rendering, self._config, model)
            connected = Connected(server, model, rendering)
            self._identity = await made_sure(connected, self._config)
        except BaseException:
            await server.close()
            raise
        self._name = model.id
        self._connected = connected

    async def score(
        self, prompts: Sequence[Conversation], completions: Sequence[str]
    ) -> list[float]:
        """See `Scorer.score`.

        Raises `ScorerUnavailableError` if the server is away or answers nonsense, and a plain
        `ScoringError` if one of the conversations cannot be scored.
        """
        if len(prompts) != len(completions):
            raise ScoringError(f"{len(prompts)} prompts and {len(completions)} completions")
        inputs = await self._running().rendering.inputs(prompts, completions)
        return await self._running().scores(inputs)  # still running: rendering takes its time

    def servers(self) -> dict[str, bool]:
        """Whether the server answered when it was last asked, by its base URL."""
        connected = self._connected
        return {} if connected is None else {connected.server.url: connected.server.answers}

    async def close(self) -> None:
        """End the connections; requests under way fail."""
        connected, self._connected = self._connected, None
        if connected is not None:
            await connected.server.close()

    def _running(self) -> Connected:
        if self._connected is None:
            raise ScoringError(f"scorer {self.name} is not running: await start()")
        return self._connected


def _rendering(config: PoolingScorerConfig, model: ServedModel) -> Rendering:
    if config.path is None:
        return RenderedThere(model.id, config.batch_size)
    if not config.path.is_dir():
        raise ModelLoadError(
            f"the reward model's folder {config.path} does not exist: correct path in the scorer's "
            "section, or leave it out and the server renders the conversations"
        )
    return RenderedHere(config.path, model.id, model.max_tokens, config.batch_size)
