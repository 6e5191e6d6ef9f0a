"""Shared kernel of bondserve: types, errors, configuration, engines, scorers, the store.

Nothing here imports a web framework, and torch is imported only by the modules that compute
with it (`engines.local`, `rewards.classifier`), each behind its package's builder.
"""

__version__ = "0.1.0"
