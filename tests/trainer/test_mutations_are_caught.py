"""The likely errors, each made on purpose, and that an oracle notices it.

The oracles that do the noticing stand beside what they check; this names them, and requires that
the mutation is still among what they try.
"""

import ast
from pathlib import Path

import pytest

ORACLES = Path(__file__).parent / "oracles"
MUTATIONS = {
    "regulariser's sign flipped": ("16_expected_gradient", "regulariser = -(drift_BP"),
    "comparison not strict": ("16_expected_gradient", "not_better, _ = _ranks(policy_rewards_BP"),
    "gradient not stopped": ("16_expected_gradient", "inputs.anchor_logprobs_BP)"),
    "moving average reversed": ("22_moving_average", "current, 1 - eta"),
    "end of sequence forgotten": ("28_logprobs", "[row[:-1].sum() for row in tokens]"),
    "log-probabilities averaged": ("28_logprobs", "[row.mean() for row in tokens]"),
}


@pytest.mark.parametrize(("oracle", "replacement"), MUTATIONS.values(), ids=MUTATIONS.keys())
def test_mutation_is_among_those_noticed(oracle: str, replacement: str):
    tree = ast.parse((ORACLES / f"test_oracle_{oracle}.py").read_text(encoding="utf-8"))
    number = oracle[:2]
    noticing = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith(f"test_oracle_{number}_notices")
    ]
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
    assert noticing
    assert replacement in strings
