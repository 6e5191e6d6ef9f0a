"""Which scope each route needs: the one table, and closed where it says nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.routing import compile_path

from bond_core.store import ALL_SCOPES, Scope

OPEN: frozenset[Scope] = frozenset()
INFER = frozenset({Scope.INFER})
READ = frozenset({Scope.READ})
ADMIN = frozenset({Scope.ADMIN})
INFER_OR_READ = INFER | READ
INFER_OR_ADMIN = INFER | ADMIN

RULES: dict[tuple[str, str], frozenset[Scope]] = {
    ("POST", "/v1/chat/completions"): INFER,
    ("POST", "/v1/completions"): INFER,
    ("POST", "/v1/best-of-n"): INFER,
    ("POST", "/v1/distilled"): INFER,
    ("POST", "/v1/compare"): INFER,
    ("GET", "/v1/models"): INFER_OR_READ,
    ("GET", "/v1/models/{model_id:path}"): INFER_OR_READ,
    ("GET", "/v1/policies"): READ,
    ("GET", "/v1/policies/{version}"): READ,
    ("GET", "/v1/training"): READ,
    # of those that a key asked for itself; of all with `read`, or `admin` for changes
    ("GET", "/v1/chat/completions"): INFER_OR_READ,
    ("GET", "/v1/chat/completions/{completion_id}"): INFER_OR_READ,
    ("GET", "/v1/chat/completions/{completion_id}/messages"): INFER_OR_READ,
    ("POST", "/v1/chat/completions/{completion_id}"): INFER_OR_ADMIN,
    ("DELETE", "/v1/chat/completions/{completion_id}"): INFER_OR_ADMIN,
    ("GET", "/v1/export"): READ,
    ("DELETE", "/v1/users/{user:path}/completions"): ADMIN,
    ("GET", "/v1/deletions"): READ,
    ("GET", "/metrics"): READ,
    ("POST", "/v1/session"): ALL_SCOPES,
    ("GET", "/v1/session"): ALL_SCOPES,
    ("DELETE", "/v1/session"): ALL_SCOPES,
    ("GET", "/openapi.json"): ALL_SCOPES,
    ("HEAD", "/openapi.json"): ALL_SCOPES,
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("HEAD", "/healthz"): OPEN,
    ("HEAD", "/readyz"): OPEN,
}
"""Method and path, as its route declares it, to the scopes of which a key needs one.

`OPEN` needs no key. What no row names needs a key of any scope.
"""


PATH_KEY = "bond.path"
"""Where the scope of a request that is not let in has the path of its route, for the metrics."""


def route_of(scope: Mapping[str, Any]) -> str:
    """The path of a request's route as it declares it: whom or what is asked for is not in it."""
    return getattr(scope.get("route"), "path", None) or scope.get(PATH_KEY, "unmatched")


@dataclass(frozen=True, slots=True)
class Rule:
    """What one request needs."""

    path: str
    """As the route declares it."""
    any_of: frozenset[Scope]

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self.any_of

    @property
    def is_limited(self) -> bool:
        """Whether the request counts against the limits of its key: it asks for an answer."""
        return self.any_of == INFER


UNNAMED = Rule("unmatched", ALL_SCOPES)
"""Of a request that no row names."""
_EXACT = {key: Rule(key[1], scopes) for key, scopes in RULES.items() if "{" not in key[1]}
_PATTERNS = [
    (method, compile_path(path)[0], Rule(path, scopes))
    for (method, path), scopes in RULES.items()
    if "{" in path
]


def methods_of(path: str) -> list[str]:
    """Every method that some route takes for a path, in alphabetical order."""
    exact = {method for method, of_path in _EXACT if of_path == path}
    return sorted(exact | {method for method, pattern, _ in _PATTERNS if pattern.match(path)})


def rule_of(method: str, path: str) -> Rule:
    """What a request for a path needs, by the same patterns as the router's."""
    exact = _EXACT.get((method, path))
    if exact is not None:
        return exact
    for of_method, pattern, rule in _PATTERNS:
        if of_method == method and pattern.match(path):
            return rule
    return UNNAMED
