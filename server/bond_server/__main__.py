"""`python -m bond_server bond.yaml`: the gateway alone, as a container runs it."""

import sys
from pathlib import Path

from bond_core.config import load_config
from bond_core.errors import BondError
from bond_server import serve
from bond_server.logs import configure


def main(arguments: list[str]) -> int:
    """Serve the configuration file named, or the environment's alone; the exit status."""
    configure("text")
    if len(arguments) > 1:
        sys.stderr.write("usage: python -m bond_server [bond.yaml]\n")
        return 2
    try:
        config = load_config(Path(arguments[0]) if arguments else None)
        configure(config.server.log_format)
        serve(config)
    except BondError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
