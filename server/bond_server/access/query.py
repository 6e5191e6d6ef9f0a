"""Query parameters: a request that has one which its route does not know is wrong.

A filter that is spelled wrongly would be no filter, and the answer would look like one.
"""

import difflib
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl

from fastapi import APIRouter
from fastapi.routing import APIRoute

from bond_core.errors import InvalidRequestError
from bond_server.services.engine_fields import UNKNOWN_CODE

METADATA = "metadata[KEY]"
BY_METADATA = frozenset({("GET", "/v1/chat/completions"), ("GET", "/v1/export")})
"""Routes that are filtered by names of the caller's own, which no signature can have."""

NO_PARAMETERS: frozenset[str] = frozenset()
Known = Mapping[tuple[str, str], frozenset[str]]
"""The parameters of each route, by method and declared path; of others there are none."""


def parameters_of(routers: Iterable[APIRouter]) -> Known:
    """What the routes of some routers take, as their signatures say."""
    known: dict[tuple[str, str], frozenset[str]] = {}
    for router in routers:
        for route in router.routes:
            assert isinstance(route, APIRoute)
            names = frozenset(field.alias for field in route.dependant.query_params)
            for method in route.methods or ():
                key = (method, route.path)
                known[key] = names | ({METADATA} if key in BY_METADATA else NO_PARAMETERS)
    return known


def refuse_unknown(query: bytes, names: frozenset[str]) -> None:
    """Raise `InvalidRequestError` that names the first parameter that is not among `names`, and
    the nearest that is."""
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name in names or (METADATA in names and name.startswith("metadata")):
            continue
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            hint = f"; did you mean {near[0]!r}?"
        elif names:
            hint = f"; this route takes {', '.join(sorted(names))}"
        else:
            hint = "; this route takes none"
        raise InvalidRequestError(
            f"there is no query parameter {name!r}{hint}", param=name, code=UNKNOWN_CODE
        )
