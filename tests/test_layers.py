"""The house of the design: a module imports only from a lower layer or from its own folder."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "ino"

LAYERS = {
    "errors": -1,
    "system": 0,
    "schema": 1,
    "tables": 1,
    "progress": 1,
    "kernels": 1,
    "data": 2,
    "losses": 3,
    "metrics": 3,
    "overlay": 3,
    "models": 3,
    "train": 4,
    "propagate": 4,
    "tasks": 5,
    "report": 6,
    "pretraining": 6,
    "onnx": 5,
    "export": 6,
    "adaptation": 7,
    "experiments": 7,
    "demo": 7,
    "web": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 9,
}


def room(path: Path) -> str:
    """The folder or top-level module that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms of `ino` that a file imports from, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] if node.module != "ino" else [f"ino.{a.name}" for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path} has a relative import")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("ino.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.name))
def test_imports_go_down(path):
    here = room(path)
    assert here in LAYERS, f"{here} has no layer: add it to the design"
    for other in imported_rooms(path) - {here}:
        assert LAYERS[other] < LAYERS[here], f"{here} must not import from {other}"


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """The modules of `ino` that a file imports, at any depth of the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    # `ino` itself imports public names when they are asked for, and holds the version.
    return found & modules - {"ino"}


def test_no_import_goes_in_a_circle():
    paths = {module_of(path): path for path in SOURCE.rglob("*.py")}
    imports = {name: imported_modules(path, set(paths)) for name, path in paths.items()}
    ready: set[str] = set()
    while left := set(imports) - ready:
        free = {name for name in left if imports[name] <= ready}
        assert free, f"these import one another in a circle, or need one that does: {sorted(left)}"
        ready |= free


def test_every_module_says_what_it_is():
    for path in SOURCE.rglob("*.py"):
        if path.stat().st_size:
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
