"""Importing the frameworks: late, quiet, and with one clear error where something is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from backpropagate_backends.torch_warm import check_version
from backpropagate_protocol.errors import DependencyError


def in_a_fresh_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_choosing_a_torch_backend_imports_no_framework() -> None:
    """The child says hello and reads the rows while the frameworks are imported in a thread."""
    program = (
        "import sys; from backpropagate_backends.registry import load; load('cpu'); load('cuda');"
        "print({'torch', 'transformers', 'numpy', 'trl'} & set(sys.modules))"
    )
    assert in_a_fresh_process(program).stdout.strip() == "set()"


@pytest.mark.slow
def test_warming_prints_nothing_and_logs_no_word_between_libraries() -> None:
    pytest.importorskip("trl")
    child = in_a_fresh_process("from backpropagate_backends.registry import load; load('cpu').warm()")
    assert (child.returncode, child.stdout) == (0, "")
    assert "gemm_4bit" not in child.stderr
    assert "Warning" not in child.stderr


def test_a_package_of_another_version_is_named_with_the_wanted_range() -> None:
    with pytest.raises(DependencyError, match=r"pytest .* is installed; >=99,<99\.5 is needed") as caught:
        check_version("pytest", (99,), (99, 5), "cpu")
    assert caught.value.code == "DEP_VERSION_UNSUPPORTED"


def test_a_package_that_is_not_there_is_named_with_the_extra_that_brings_it() -> None:
    with pytest.raises(DependencyError, match="no-such-package is not installed") as caught:
        check_version("no-such-package", (1,), (2,), "cuda")
    assert caught.value.code == "DEP_RUNNER_MISSING"
    assert "backpropagate[cuda]" in caught.value.suggestion
