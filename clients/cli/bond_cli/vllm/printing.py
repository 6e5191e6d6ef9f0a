"""Commands as text: what a person copies into a shell, with the reason beside every flag."""

import shlex
from collections.abc import Iterator, Sequence

from bond_cli.vllm.settings import ServerCommand, Variable


def script(servers: Sequence[ServerCommand]) -> str:
    """All commands for bash; each runs until it is stopped, so in a terminal of its own."""
    return "\n".join(line for server in servers for line in _lines(server))


def _lines(server: ServerCommand) -> Iterator[str]:
    name = server.role.upper()
    yield f"# {server.role}: {server.model}"
    yield f"{name}_ENV=("
    yield from _aligned([(_assignment(variable), variable.why) for variable in server.variables])
    yield ")"
    yield f"{name}_FLAGS=("
    yield from _aligned([(shlex.join(flag.words), flag.why) for flag in server.flags])
    yield ")"
    program = shlex.join(server.program)
    yield f'env "${{{name}_ENV[@]}}" {program} "${{{name}_FLAGS[@]}}"'
    yield ""


def _aligned(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = min(72, max(len(text) for text, _ in rows))
    return (f"  {text:<{width}}  # {why}" for text, why in rows)


def _assignment(variable: Variable) -> str:
    if variable.secret:  # the terminal's history and `ps` are no place for it
        return f'{variable.name}="${{{variable.name}:?set it to the key of the configuration}}"'
    return f"{variable.name}={shlex.quote(variable.value)}"


def pointing(servers: Sequence[ServerCommand]) -> str:
    """The lines of `bond.yaml`, and the flags of `bond up`, that point at the servers."""
    lines = ["in bond.yaml:", ""]
    flags: list[str] = []
    for server in servers:
        url = server_url(server)
        if server.role == "policy":
            lines.append(f"  engine: {{type: vllm, urls: [{url}]}}")
            flags += ["--engine-url", url]
        else:
            path = shlex.quote(str(server.model))
            lines.append(f"  {server.role}: {{type: pooling, url: {url}, path: {path}}}")
            flag = "--reward-model" if server.role == "scorer" else "--judge"
            flags += [flag, url]
    return "\n".join([*lines, "", "or as flags:", "", f"  bond up MODEL {shlex.join(flags)}", ""])


def server_url(server: ServerCommand) -> str:
    """Where this machine reaches the server."""
    from bond_cli.ready import base_url

    return base_url(server.host, server.port)
