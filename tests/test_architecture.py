"""The dependency rules, as code: who may import whom, and what may be imported early."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "bond_core": ROOT / "core/bond_core",
    "bond_server": ROOT / "server/bond_server",
    "bond_trainer": ROOT / "trainer/bond_trainer",
    "bond_client": ROOT / "clients/python/bond_client",
    "bond_cli": ROOT / "clients/cli/bond_cli",
    "bond_demo": ROOT / "demo/bond_demo",
}
ALLOWED = {
    "bond_core": set[str](),
    "bond_server": {"bond_core"},
    "bond_trainer": {"bond_core"},
    "bond_client": set[str](),
    "bond_cli": {"bond_core", "bond_server", "bond_trainer", "bond_client", "bond_demo"},
    "bond_demo": {"bond_core", "bond_client"},
}
# engines, rewards and store never import one another
LAYERS_OF_CORE = {
    "engines": {
        "engines", "types", "errors", "config", "pretrained", "tokenizing", "fingerprints",
        "json_text", "trace_context",
    },
    "rewards": {
        "rewards", "types", "errors", "config", "pretrained", "tokenizing", "fingerprints",
        "trace_context",
    },
    "store": {"store", "types", "errors", "config", "holdout", "json_text"},
}  # fmt: skip
TORCH = {"torch", "transformers", "peft", "safetensors"}
WEB = {"fastapi", "starlette", "uvicorn"}
TORCH_MODULES_OF_CORE = (
    "pretrained",
    "tokenizing",  # transformers' tokenizers, which need no torch
    "engines/local",
    "engines/vllm/zero_adapter",  # safetensors alone
    "rewards/classifier",
)
WEB_FREE_OF_SERVER = ("services/", "schemas/", "metrics.py")
FORBIDDEN_NAMES = {"utils", "util", "helpers", "common", "misc"}
MAX_LINES = 400


def files() -> list[tuple[str, Path]]:
    return [(name, p) for name, root in PACKAGES.items() for p in sorted(root.rglob("*.py"))]


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names of what a file imports; names under TYPE_CHECKING are left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


ids = [f"{name}/{path.relative_to(PACKAGES[name])}" for name, path in files()]


def test_every_package_has_files() -> None:
    assert {name for name, _ in files()} == set(PACKAGES)


@pytest.mark.parametrize(("package", "path"), files(), ids=ids)
def test_packages_import_only_what_they_may(package: str, path: Path) -> None:
    ours = roots(imports(path)) & set(PACKAGES)
    assert ours <= ALLOWED[package] | {package}


@pytest.mark.parametrize(("package", "path"), files(), ids=ids)
def test_files_are_small_and_named_for_something(package: str, path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    assert len(path.read_text().splitlines()) <= MAX_LINES
    assert ast.get_docstring(ast.parse(path.read_text())) or not path.read_text().strip()


def test_folders_are_not_importable_by_their_own_name() -> None:
    for folder in ("core", "server", "trainer", "clients", "demo"):
        assert not list((ROOT / folder).glob("*.py"))
    for _, path in files():
        assert not roots(imports(path)) & {"core", "server", "trainer", "clients", "demo"}, path


@pytest.mark.parametrize("layer", LAYERS_OF_CORE)
def test_core_keeps_its_layers_apart(layer: str) -> None:
    siblings = {p.stem if p.is_file() else p.name for p in PACKAGES["bond_core"].iterdir()}
    for path in (PACKAGES["bond_core"] / layer).rglob("*.py"):
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "bond_core" and len(parts) > 1 and parts[1] in siblings:
                assert parts[1] in LAYERS_OF_CORE[layer] or (
                    ".".join(parts[1:3]) in LAYERS_OF_CORE[layer]
                ), f"{path} imports {name}"


def test_core_has_no_web_framework_and_torch_only_where_it_computes() -> None:
    for path in PACKAGES["bond_core"].rglob("*.py"):
        found = roots(imports(path))
        assert not found & WEB, path
        inside = str(path.relative_to(PACKAGES["bond_core"]))
        if not inside.startswith(TORCH_MODULES_OF_CORE):
            assert not found & TORCH, path


def test_services_know_no_web_framework() -> None:
    for path in PACKAGES["bond_server"].rglob("*.py"):
        if str(path.relative_to(PACKAGES["bond_server"])).startswith(WEB_FREE_OF_SERVER):
            assert not roots(imports(path)) & WEB, path


def test_the_gateway_does_not_compute_with_torch() -> None:
    for path in PACKAGES["bond_server"].rglob("*.py"):
        assert not roots(imports(path)) & TORCH, path


def test_sql_stays_in_the_store() -> None:
    for name, path in files():
        if "sqlalchemy" in roots(imports(path)):
            assert name == "bond_core", path
            assert "store" in path.parts, path


def test_commands_import_nothing_heavy_at_the_top() -> None:
    heavy = TORCH | WEB | {"sqlalchemy", "numpy", "scipy", "matplotlib", "bond_server"}
    heavy |= {"bond_trainer", "bond_core"}
    for path in PACKAGES["bond_cli"].rglob("*.py"):
        assert not roots(imports(path, top_level_only=True)) & heavy, path
