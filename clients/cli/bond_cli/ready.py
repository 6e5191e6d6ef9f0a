"""Waiting until a server answers."""

import asyncio

_POLL_S = 0.2


async def until_ready(url: str, path: str = "/readyz") -> None:
    """Return once `path`, by default the gateway's, answers 200. Cancel it to give up."""
    import httpx

    async with httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False) as http:
        while True:
            try:
                if (await http.get(path)).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            await asyncio.sleep(_POLL_S)


def base_url(host: str, port: int) -> str:
    """The URL under which a listener on (host, port) is reached from this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
