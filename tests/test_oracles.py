"""Every one of the 29 oracles has a test of its number, and every such test asserts something."""

import ast
import re
from pathlib import Path


def test_all_29_oracles_are_tested():
    found = {
        int(match[1]): node
        for file in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (match := re.match(r"test_oracle_(\d\d)_\w+", node.name))
    }
    assert found.keys() == set(range(1, 30))
    empty = [node.name for node in found.values() if not any(map(asserts, ast.walk(node)))]
    assert not empty


def asserts(node: ast.AST) -> bool:
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return isinstance(node, ast.Assert) or "assert" in called or called.endswith("raises")
