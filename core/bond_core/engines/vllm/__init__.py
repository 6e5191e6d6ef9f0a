"""vLLM servers as an engine: one or many replicas over HTTP.

`wire` says what is sent and read, `connection` sends it, `replica` is one server and its state,
`fleet` chooses among them and watches them, `adapters` keeps the versions on all of them, and
`engine` is the protocol over these.
"""

from bond_core.engines.vllm.engine import VllmEngine

__all__ = ["VllmEngine"]
