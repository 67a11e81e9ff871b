"""Who imports whom, what `import tinyvae` loads, and that everything public is documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINYVAE = ROOT / "tinyvae"
KERNELS = ROOT / "kernels" / "tinyvae_kernels"

# Every module imports only from modules before it.  A new module is put in its place here.
ORDER = [
    "_text", "_sklearn", "spelling", "devices", "sprites", "paddle", "data", "labels",
    "checkpoint", "schedules",
    "tensor", "ops", "checking", "optim", "nn", "parallel",  # tensors from here on
    "corruptions", "batches", "estimators", "flows", "priors", "likelihoods", "objectives",
    "models",
    "metrics", "imputation", "recorded", "captured", "train",
    "saved", "options", "fitted", "estimator", "anomaly", "plots", "runs", "console", "arguments",
    "cli", "__main__",
]  # fmt: skip


def name_of(path: Path) -> str:
    """tinyvae/ops/conv.py -> ops, tinyvae/nn.py -> nn."""
    return path.relative_to(TINYVAE).parts[0].removesuffix(".py")


def imports(path: Path, package: tuple[str, ...]) -> set[str]:
    """Absolute names of all that a file imports, inside functions too; package: where it lies."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base = (*base, *([node.module] if node.module else []))
            found |= {".".join((*base, alias.name)) for alias in node.names}
    return found


def modules_imported(path: Path) -> set[str]:
    """Names of tinyvae's own modules that a file of tinyvae imports."""
    package = ("tinyvae", *path.relative_to(TINYVAE).parts[:-1])
    own = {n.split(".")[1] for n in imports(path, package) if n.startswith("tinyvae.")}
    return own & MODULES - {name_of(path)}  # __version__ is no module


FILES = [path for path in sorted(TINYVAE.rglob("*.py")) if path != TINYVAE / "__init__.py"]
MODULES = {name_of(path) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    name = name_of(path)
    assert name in ORDER, f"give {name} its place in ORDER"
    before = set(ORDER[: ORDER.index(name)])
    assert modules_imported(path) <= before


def test_the_walk_sees_imports():
    """Else the test above would pass for any file."""
    assert {"ops", "likelihoods", "tensor"} <= modules_imported(TINYVAE / "objectives.py")
    assert {"nn", "tensor", "_text"} <= modules_imported(TINYVAE / "models" / "networks.py")
    assert modules_imported(TINYVAE / "tensor.py") == {"devices"}
    assert "tensor" in modules_imported(TINYVAE / "ops" / "conv.py")


def test_kernels_are_imported_by_the_ops_the_optimizer_and_the_devices_alone():
    """devices: the kernels know which arrays lie on a GPU, and why there is none."""
    users = {
        name_of(path)
        for path in TINYVAE.rglob("*.py")
        if any(n.startswith("tinyvae_kernels") for n in imports(path, ("tinyvae",)))
    }
    assert users == {"ops", "optim", "devices"}


def test_kernels_import_nothing_of_tinyvae():
    for path in KERNELS.rglob("*.py"):
        for name in imports(path, ("tinyvae_kernels",)):
            assert name.split(".")[0] != "tinyvae", path


def test_only_what_is_loaded_at_a_first_call_imports_numba():
    users = {
        path.name
        for path in (*KERNELS.rglob("*.py"), *TINYVAE.rglob("*.py"))
        if any(n.split(".")[0] == "numba" for n in imports(path, ("tinyvae_kernels",)))
    }
    assert users == {"_numba.py", "_cache.py", "_parts.py", "_tile.py"}


def loaded_by(code: str) -> set[str]:
    """Top-level names in sys.modules after running code in a fresh interpreter."""
    paths = [str(ROOT), str(ROOT / "kernels")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{code}\nprint(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True
    )
    return {name.split(".")[0] for name in run.stdout.split()}


HEAVY = {"numba", "llvmlite", "matplotlib", "sklearn", "scipy", "pandas", "typer", "rich", "PIL",
         "torch", "jax", "cupy", "hypothesis", "pytest"}  # fmt: skip


def test_import_tinyvae_is_light():
    loaded = loaded_by("import tinyvae")
    assert {"tinyvae", "tinyvae_kernels", "numpy"} <= loaded
    assert not loaded & HEAVY


def test_import_tinyvae_kernels_loads_nothing_of_tinyvae():
    loaded = loaded_by("import tinyvae_kernels")
    assert "tinyvae" not in loaded
    assert not loaded & HEAVY


def public_definitions(path: Path):
    """Names and nodes of the module, its public classes, functions and methods."""
    tree = ast.parse(path.read_text())
    yield path.stem, tree
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, kinds) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


ALL = sorted([*TINYVAE.rglob("*.py"), *KERNELS.rglob("*.py")])


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_public_has_a_docstring(path):
    bare = [name for name, node in public_definitions(path) if not ast.get_docstring(node)]
    assert not bare


def test_public_names_exist():
    import tinyvae
    import tinyvae_kernels

    for package in (tinyvae, tinyvae_kernels):
        missing = [name for name in package.__all__ if not hasattr(package, name)]
        assert not missing
        assert len(set(package.__all__)) == len(package.__all__)
