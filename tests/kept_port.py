"""A port that stays its server's own while the server is away."""

import socket


class KeptPort:
    """Bound as long as the object is held, so that no connection and no other server gets it.

    Who connects while nobody listens is refused, as where a server has gone away.
    """

    def __init__(self) -> None:
        self._holder = _bound(0)
        self.number: int = self._holder.getsockname()[1]

    def listener(self) -> socket.socket:
        """A socket of its own on the port, for a server to listen on and to close."""
        return _bound(self.number)

    def close(self) -> None:
        """Let it go."""
        self._holder.close()


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made
