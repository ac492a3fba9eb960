"""The selection of tests that runs on every system without a framework: it exists, and needs none."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.house.source import ROOT

_FRAMEWORKS = {"torch", "transformers", "trl", "peft", "datasets", "numpy", "safetensors", "gguf", "mlx", "jinja2"}
_CHOSEN = [ROOT / line for line in (ROOT / ".ci" / "toy-matrix.txt").read_text(encoding="utf-8").split()]
_WORKFLOW = ROOT / ".github" / "workflows" / "toy-matrix.yml"


@pytest.mark.parametrize("chosen", _CHOSEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_is_chosen_for_every_system_imports_no_framework(chosen: Path) -> None:
    assert chosen.exists()
    for path in chosen.rglob("*.py") if chosen.is_dir() else [chosen]:
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported.add(node.module.partition(".")[0])
        assert not imported & _FRAMEWORKS, path


def test_the_matrix_names_three_systems_and_four_pythons() -> None:
    text = _WORKFLOW.read_text(encoding="utf-8")
    assert set(re.findall(r"(\w+)-latest", text)) == {"ubuntu", "windows", "macos"}
    assert set(re.findall(r'"(3\.\d+)"', text)) == {"3.11", "3.12", "3.13", "3.14"}
    assert "@.ci/toy-matrix.txt" in text
