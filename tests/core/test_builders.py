"""Builders choose by configuration and say what to install where a package is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from bond_core.config import FakeEngineConfig, FunctionScorerConfig, ModelConfig
from bond_core.engines import build_engine
from bond_core.engines.fake import FakeEngine
from bond_core.rewards import build_scorer
from bond_core.rewards.function import FunctionScorer

CORE = Path(__file__).resolve().parents[2] / "core"

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from pathlib import Path
from bond_core.config import ClassifierScorerConfig, LocalEngineConfig, ModelConfig
from bond_core.engines import build_engine
from bond_core.errors import ModelLoadError
from bond_core.rewards import build_scorer
for build in (
    lambda: build_engine(LocalEngineConfig(), ModelConfig(path=Path("m"))),
    lambda: build_scorer(ClassifierScorerConfig(path=Path("r"))),
):
    try:
        build()
    except ModelLoadError as error:
        print(error)
"""

WITHOUT_AIOHTTP = """
import sys
sys.modules["aiohttp"] = None
from bond_core.config import PoolingScorerConfig
from bond_core.errors import ModelLoadError
from bond_core.rewards import build_scorer
try:
    build_scorer(PoolingScorerConfig(url="http://gpu-1:8001"))
except ModelLoadError as error:
    print(error)
"""

POOLING_WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None
from bond_core.config import PoolingScorerConfig
from bond_core.rewards import build_scorer
print(build_scorer(PoolingScorerConfig(url="http://gpu-1:8001")).name)
"""


def test_the_configuration_chooses() -> None:
    model = ModelConfig(path=Path("m"))
    assert isinstance(build_engine(FakeEngineConfig(), model), FakeEngine)
    function = FunctionScorerConfig(function="statistics:fmean")
    assert isinstance(build_scorer(function), FunctionScorer)


def test_a_missing_package_is_answered_with_the_command_that_installs_it() -> None:
    lines = printed(WITHOUT_TORCH)
    assert len(lines) == 2
    for line in lines:
        assert "'torch'" in line
        assert "pip install 'bondserve[local]'" in line
    [line] = printed(WITHOUT_AIOHTTP)
    assert "'aiohttp'" in line
    assert "pip install 'bondserve[vllm]'" in line


def test_a_pooling_scorer_needs_no_torch() -> None:
    assert printed(POOLING_WITHOUT_TORCH) == ["http://gpu-1:8001"]


def printed(program: str) -> list[str]:
    """The lines that a program prints in a Python of its own."""
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(CORE), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


@pytest.mark.parametrize("module", ["bond_core.engines", "bond_core.rewards"])
def test_builders_do_not_import_torch(module: str) -> None:
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(CORE), "PATH": ""}, check=False
    )
    assert run.returncode == 0
