"""A gateway that anyone can reach must know whom it answers."""

import ipaddress
import socket

from bond_core.config import BondConfig
from bond_core.errors import ConfigError


def refuse_open(config: BondConfig, *, has_keys: bool) -> None:
    """Raise `ConfigError` for an address other than loopback while no key exists, unless the
    configuration allows that."""
    host = config.server.host
    if has_keys or config.access.allow_open or is_loopback(host):
        return
    raise ConfigError(
        f"server.host is {host}, which others can reach, and there is no API key: make one with "
        "`bond keys create NAME` (with this --config or --data-dir), listen on 127.0.0.1, or set "
        "access.allow_open to let anyone ask"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a listener on this host; False if it does not resolve."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0])).is_loopback for entry in found)
