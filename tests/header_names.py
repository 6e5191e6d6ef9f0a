"""Which headers of ours the gateway's code names, whatever requests a test happens to send."""

import ast
import re
from pathlib import Path

import bond_server

SOURCES = Path(bond_server.__file__).parent


def headers_in_the_code() -> set[str]:
    """Every `x-…`, `openai-…` and `retry-…` header that a string of the gateway's code is."""
    names: set[str] = set()
    for file in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
                text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
                if re.fullmatch(r"(x|openai|retry)(-[a-z]+)+", text):
                    names.add(text)
    return names
