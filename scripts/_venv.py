"""Makes the repository's own .venv and installs the package into it; shared by quickstart.py and test.py.

Standard library only. Everything here may run again and again: what is already right is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OLDEST = (3, 11)

# The newest version whose plain install is known to work on CPU-only machines; every extra accepts it.
TORCH = "torch==2.13.0"

# llama.cpp is compiled on the spot: only the library itself, without what its Python package never loads. That is a minute
# and a half on two cores instead of four and a half. Whoever sets CMAKE_ARGS has the last word.
_LLAMA = (
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={(ROOT / 'scripts' / 'llama_only.cmake').as_posix()}",
    "-DLLAVA_BUILD=OFF",
    "-DGGML_LLAMAFILE=OFF",
    "-DGGML_CPU_REPACK=OFF",
)


class Refusal(Exception):
    """Something the user has to change first; the message says what."""


def say(text: str) -> None:
    print(f"- {text}", flush=True)  # plain ASCII: a console's code page may hold nothing else


def check_python() -> None:
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:3])
        raise Refusal(
            f"Python {found} is too old. Run this with Python 3.11 or newer, for example: python3.11 {sys.argv[0]}"
        )


def check_compiler() -> None:
    """The tests run what was exported in llama.cpp itself, so without a compiler there is nothing to go on with."""
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    if sys.platform != "win32" and not any(shutil.which(name) for name in names if name):  # cmake finds Visual Studio
        raise Refusal(
            "llama.cpp has to be compiled for the tests, and there is no C++ compiler here. Debian and Ubuntu: "
            "apt install g++; macOS: xcode-select --install; elsewhere set CXX. Then run this again."
        )


def has_nvidia() -> bool:
    """True if the NVIDIA driver's own tool is here and finds a card."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and b"GPU" in listed.stdout


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _venv_works() -> bool:
    """True if .venv runs, is our Python version, and has pip."""
    if not venv_python().exists():
        return False
    probe = "import sys, pip; print(sys.version_info[:2])"
    try:
        answer = subprocess.run(
            [venv_python(), "-c", probe], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError:
        return False
    return answer.returncode == 0 and answer.stdout.strip() == str(tuple(sys.version_info[:2]))


def _make_venv() -> None:
    if VENV.exists():
        say("the .venv here is broken or of another Python: making it anew")
        shutil.rmtree(VENV)
    else:
        say("making .venv")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], stdin=subprocess.DEVNULL, check=False)
    if made.returncode != 0 or not _venv_works():
        raise Refusal(
            "Python could not make a virtual environment. On Debian and Ubuntu install python3-venv; elsewhere, "
            "reinstall Python with its venv and pip modules. Then run this again."
        )


def _pip(*arguments: str) -> None:
    command = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    if not sys.stdout.isatty():
        command.append("--quiet")
    cmake = f"{shlex.join(_LLAMA)} {os.environ.get('CMAKE_ARGS', '')}"
    environment = {**os.environ, "CMAKE_ARGS": cmake.strip()}
    done = subprocess.run([*command, *arguments], stdin=subprocess.DEVNULL, cwd=ROOT, env=environment, check=False)
    if done.returncode != 0:
        raise Refusal(
            f"pip could not install {arguments[-1]}; its last lines above say why. Is the network there? Is there space?"
        )


def _fetch_llama_sources() -> None:
    fetched = subprocess.run(
        [venv_python(), ROOT / "scripts" / "llama_sources.py"], stdin=subprocess.DEVNULL, cwd=ROOT, check=False
    )
    if fetched.returncode != 0:
        raise Refusal("llama.cpp's sources, which the tests are held against, could not be fetched; see above for why.")


def _wanted(extra: str) -> str:
    """What an install depends on: if this is unchanged, there is nothing to do."""
    return hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + extra.encode()).hexdigest()


def ensure(extra: str) -> Path:
    """.venv with this package (editable) and `extra` in it; returns its Python. Raises Refusal."""
    check_python()
    if not _venv_works():
        _make_venv()
    stamp = VENV / f".backpropagate-{extra}"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == _wanted(extra):
        return venv_python()
    if extra == "dev":
        check_compiler()
    say(f"installing backpropagate[{extra}] (some minutes the first time)")
    if extra != "cuda":
        if sys.platform == "linux" and not has_nvidia() and not _has_extra_index():
            say(
                "if pip fetches CUDA libraries you do not need, point PIP_EXTRA_INDEX_URL at PyTorch's CPU wheels first"
            )
        _pip(TORCH)
    _pip("--editable", f".[{extra}]")
    if extra == "dev":
        _fetch_llama_sources()
    stamp.write_text(_wanted(extra), encoding="utf-8")
    return venv_python()


def _has_extra_index() -> bool:
    return any(os.environ.get(name) for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_FIND_LINKS"))
