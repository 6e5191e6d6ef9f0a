"""Every one of the 29 oracles has a test of its number."""

import ast
import re
from pathlib import Path


def test_all_29_oracles_are_tested():
    found = {
        int(match[1])
        for file in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (match := re.match(r"test_oracle_(\d\d)_\w+", node.name))
    }
    assert found == set(range(1, 30))
