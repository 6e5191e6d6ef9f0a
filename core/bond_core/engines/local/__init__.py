"""The local engine: a transformers model in this process, decoded with continuous batching.

    engine.py       the Engine protocol, for asyncio callers
    worker.py       the decode thread: what runs when
    decode_loop.py  the running rows of one version, and their step
    scoring.py      log-probabilities of given tokens
    forward.py      the model's passes: prefill, decode, extend
    kv_cache.py     caches whose rows have lengths of their own
    sampler.py      the next token of all rows
    rows.py         requests and candidates
    weights.py      versions as replaced parameters
    adapters.py     PEFT directories to replaced parameters
    loading.py      folders to models
    selfcheck.py    exactness, measured at start

Everything here needs torch; reach it through `bond_core.engines.build_engine`.
"""

from bond_core.engines.local.engine import LocalEngine

__all__ = ["LocalEngine"]
