"""The gateway: answers by Best-of-N or from the distilled policy, in OpenAI's dialect."""

from collections.abc import Callable

from bond_core.config import BondConfig

__all__ = ["serve"]


def serve(config: BondConfig, announce: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    `announce` is called once with the base URL when requests are answered; by default it is
    printed. Raises `ConfigError` if the port is in use, `ModelLoadError` if a model cannot be
    loaded, `StoreUnavailableError` if the store cannot be opened.
    """
    from bond_server.serving import print_url, run  # the web framework is loaded only to serve

    run(config, announce or print_url)
