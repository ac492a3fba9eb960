"""The two scripts of the README: what they do where everything is right, and what they say where it is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.house.source import ROOT
from tests.llama_sources import LLAMA_SOURCES

_SCRIPTS = ROOT / "scripts"


def script(name: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script as a user starts it, with nothing to type on."""
    return subprocess.run(
        [sys.executable, str(_SCRIPTS / name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **environment},
        check=False,
        timeout=280,
    )


@pytest.mark.slow
def test_the_quickstart_ends_with_the_trained_answer(tmp_path: Path) -> None:
    done = script("quickstart.py", "--python", sys.executable, "--output", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads((ROOT / "fixtures" / "quickstart.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert f"tuned model  {first['conversations'][1]['value']}" in done.stdout
    assert f"base model   {first['conversations'][1]['value']}" not in done.stdout


def test_a_training_that_fails_fails_the_quickstart_without_a_traceback(tmp_path: Path) -> None:
    blocked = tmp_path / "out"
    blocked.write_text("a file where the output folder should be")
    done = script("quickstart.py", "--python", sys.executable, "--output", str(blocked), cwd=tmp_path)
    assert done.returncode == 1
    assert "quickstart stopped: `backprop train` ended with exit status 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_that_is_too_old_is_told_so() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(_SCRIPTS)!r})\n"
        "import _venv; _venv.OLDEST = (99, 0)\n"
        "try:\n    _venv.check_python()\nexcept _venv.Refusal as refusal:\n    print(refusal)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert "is too old" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="cmake finds the compiler there, not the path")
def test_a_machine_without_a_compiler_is_told_what_to_install(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(_SCRIPTS)!r})\n"
        "import _venv\n"
        "try:\n    _venv.check_compiler()\nexcept _venv.Refusal as refusal:\n    print(refusal)\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert "no C++ compiler" in done.stdout
    assert "apt install g++" in done.stdout


def test_the_gates_own_environment_leaves_nothing_out_for_want_of_llama_cpp() -> None:
    if Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        pytest.skip("this is another environment than the one that scripts/test.py makes")
    assert find_spec("llama_cpp") is not None
    assert (LLAMA_SOURCES / "convert_hf_to_gguf.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["quickstart.py", "make_tiny_base.py", "bench_supervision.py", "bench_export.py", "bench_gpu.py"]
)
def test_a_script_explains_itself(name: str, tmp_path: Path) -> None:
    done = script(name, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_the_gate_is_the_test_script() -> None:
    gate = ROOT / ".ci" / "run"
    assert 'exec "$python" scripts/test.py "$@"' in gate.read_text(encoding="utf-8")
    if sys.platform != "win32":
        assert os.access(gate, os.X_OK)


@pytest.mark.slow
def test_a_broken_environment_is_made_anew_and_a_good_one_is_kept(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(_SCRIPTS)!r})\n"
        "from pathlib import Path\n"
        "import _venv\n"
        "_venv.VENV = Path(sys.argv[1]) / '.venv'\n"
        "assert not _venv._venv_works()\n"
        "_venv._make_venv()\n"
        "assert _venv._venv_works()\n"
        "(_venv.VENV / 'mine').touch()\n"
        "_venv.venv_python().unlink()\n"
        "assert not _venv._venv_works()\n"
        "_venv._make_venv()\n"
        "assert _venv._venv_works() and not (_venv.VENV / 'mine').exists()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "broken" in done.stdout
