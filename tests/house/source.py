"""Our own source as the house tests look at it: every module, and what it reaches for."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# folder → the one package in it
PARTS = {
    "protocol": "backpropagate_protocol",
    "backends": "backpropagate_backends",
    "runner": "backpropagate_runner",
    "supervisor": "backpropagate",
}


def modules(*parts: str) -> list[Path]:
    """The modules of these parts, or of all four."""
    return [path for part in parts or PARTS for path in sorted((ROOT / part / PARTS[part]).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def reaches(path: Path) -> frozenset[str]:
    """Dotted names that a module imports or looks up on an imported module: `subprocess`, `os.environ`, `signal.signal`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {module, *(f"{module}.{alias.name}" for alias in names)}
            case ast.Attribute(value=ast.Name(id=owner), attr=attribute):
                found.add(f"{owner}.{attribute}")
            case ast.Call(func=ast.Name(id=name)):
                found.add(f"{name}()")
    return frozenset(found)


def string_constants(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
