"""The walls between the four parts, and the doors through which each part reaches the world."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.house.source import PARTS, ROOT, modules, name_of, reaches, string_constants

_HEAVY = (
    "torch", "transformers", "numpy", "datasets", "peft", "trl", "accelerate", "pyarrow", "bitsandbytes",
    "gguf", "llama_cpp", "safetensors", "huggingface_hub", "jinja2", "matplotlib",
)  # fmt: skip


def python(program: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter, from which nothing of this test session can leak."""
    return subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=120,
    )


def loaded_by(program: str, names: tuple[str, ...], cwd: Path) -> set[str]:
    """Which of `names` a fresh process has imported after running `program`."""
    ends = f"import sys\nprint('LOADED', *(name for name in {names!r} if name in sys.modules))"
    done = python(f"{program}\n{ends}", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (last,) = (line for line in done.stdout.splitlines() if line.startswith("LOADED"))
    return set(last.split()[1:])


def test_no_part_imports_what_it_must_not() -> None:
    done = python("import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "program",
    [
        "import backpropagate",
        "from backpropagate import Trainer; Trainer('tiny')",
        "from backpropagate.config import get_preset; get_preset('fast')",
        "from backpropagate.checkpoints import CheckpointManager, CheckpointPolicy",
        "import backpropagate.gpu_safety, backpropagate.exceptions, backpropagate.drive.supervise, backpropagate.watch.console",
        "from backpropagate.cli import run; run(['--help'])",
        "from backpropagate.cli import run; run(['list-runs'])",
        "from backpropagate.cli import run; run(['config'])",
        "from backpropagate.cli import run; run(['info'])",
    ],
)
def test_the_parent_never_loads_a_framework(program: str, tmp_path: Path) -> None:
    assert loaded_by(program, (*_HEAVY, "backpropagate_runner", "backpropagate_backends"), tmp_path) == set()


def test_the_help_page_loads_nothing_that_it_does_not_show(tmp_path: Path) -> None:
    slow = ("anyio", "asyncio", "pynvml", "rich", "msgspec", "orjson", "filelock")
    assert loaded_by("from backpropagate.cli import run; run(['--help'])", slow, tmp_path) == set()


def test_the_protocol_and_the_runner_load_without_any_framework(tmp_path: Path) -> None:
    program = "import backpropagate_protocol.framing, backpropagate_runner.train, backpropagate_backends.toy"
    assert loaded_by(program, (*_HEAVY, "backpropagate", "anyio", "click", "rich"), tmp_path) == set()


def test_the_runner_knows_backends_by_their_contract_only() -> None:
    """And by what no framework is needed for: where a model's files are, how much memory is free, and to try something out."""
    names = ("registry", "base", "model_source", "host_memory", "probing", "rope_styles")
    known = {f"backpropagate_backends.{name}" for name in names}
    used = {name for path in modules("runner") for name in reaches(path) if name.startswith("backpropagate_backends")}
    assert {name for name in used if ".".join(name.split(".")[:2]) not in known} <= {"backpropagate_backends"}


def test_the_linter_forbids_the_runner_every_backend_that_there_is() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = (c for c in tool["importlinter"]["contracts"] if c["name"].startswith("the runner knows backends"))
    known = {"base", "registry", "model_source", "host_memory", "probing", "rope_styles", "__init__"}
    there = {path.stem for path in modules("backends")} - known
    assert {f"backpropagate_backends.{name}" for name in there} <= set(contract["forbidden_modules"])


def test_what_the_runner_asks_of_backends_loads_no_framework(tmp_path: Path) -> None:
    program = (
        "import backpropagate_backends.model_source, backpropagate_backends.host_memory, backpropagate_backends.probing, "
        "backpropagate_backends.rope_styles"
    )
    assert loaded_by(program, _HEAVY, tmp_path) <= {"huggingface_hub"}


def test_the_runner_computes_with_numbers_only_where_it_exports_merges_and_talks() -> None:
    names = {"numpy", "gguf", "llama_cpp", "safetensors", "huggingface_hub", "jinja2"}
    found = {name_of(path) for path in modules("runner") if names & reaches(path)}
    assert found
    homes = ("runner/backpropagate_runner/export/", "runner/backpropagate_runner/combine/")
    elsewhere = {name for name in found if not name.startswith(homes)}
    assert elsewhere == {"runner/backpropagate_runner/chat.py"}


@pytest.mark.parametrize(("part", "package"), PARTS.items())
def test_a_part_is_one_package_and_its_plate(part: str, package: str) -> None:
    made_by_tools = {"__pycache__"}
    found = {p.name for p in (ROOT / part).iterdir() if p.name not in made_by_tools and p.suffix != ".egg-info"}
    assert found == {"README.md", package}
    assert (ROOT / part / package / "py.typed").exists()


def test_pyproject_names_the_same_parts_everywhere() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    folders, packages = set(PARTS), set(PARTS.values())
    paths = {f"{folder}/{package}" for folder, package in PARTS.items()}
    assert set(tool["hatch"]["build"]["targets"]["wheel"]["packages"]) == paths
    assert set(tool["coverage"]["run"]["source_pkgs"]) == packages
    assert set(tool["importlinter"]["root_packages"]) == packages
    assert folders <= set(tool["mypy"]["files"])
    assert folders <= set(tool["mypy"]["mypy_path"])
    assert folders <= set(tool["ruff"]["src"])
    assert set(tool["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]) == folders


# What may be used only behind a door, and the doors. Each entry is exact: a door that is not used any more must go.
_DOORS: dict[str, set[str]] = {
    "subprocess": {
        "supervisor/backpropagate/doors/process.py",
        "supervisor/backpropagate/doors/line_helper.py",
        "supervisor/backpropagate/doors/launch.py",
        "supervisor/backpropagate/doors/attendant.py",
    },
    "anyio.open_process": {
        "supervisor/backpropagate/doors/process.py",
        "supervisor/backpropagate/doors/line_helper.py",
    },
    "multiprocessing": set(),
    "os.system": set(),
    "os.fork": set(),
    "os.killpg": {"supervisor/backpropagate/doors/process.py", "supervisor/backpropagate/doors/attendant.py"},
    "os.kill": {
        "protocol/backpropagate_protocol/lifeline.py",
        "runner/backpropagate_runner/drill.py",
        "runner/backpropagate_runner/drill_disks.py",
    },
    "signal.signal": {"supervisor/backpropagate/doors/process.py", "runner/backpropagate_runner/control.py"},
    "os.dup2": {"runner/backpropagate_runner/channel.py"},
    "os.environ": {
        "supervisor/backpropagate/doors/environ.py",
        "backends/backpropagate_backends/mlx_warm.py",
        "backends/backpropagate_backends/torch_warm.py",
        "backends/backpropagate_backends/cuda.py",
        "backends/backpropagate_backends/unsloth.py",
        "runner/backpropagate_runner/export/one_thread.py",
    },
    "os.getenv": set(),
    "print()": set(),
    "input()": {"supervisor/backpropagate/commands/chat.py"},
    # What an export reaches: llama.cpp, Ollama over HTTP, the hub, and programs of others, run in a child of their own.
    "llama_cpp": {"runner/backpropagate_runner/export/llama.py", "runner/backpropagate_runner/export/quantize.py"},
    "http.client": {"runner/backpropagate_runner/export/ollama.py"},
    "urllib.request": {"backends/backpropagate_backends/model_source.py"},
    "socket": {"runner/backpropagate_runner/export/ollama.py"},
    "huggingface_hub": {
        "backends/backpropagate_backends/mlx_model.py",
        "backends/backpropagate_backends/model_source.py",
        "runner/backpropagate_runner/export/hub_files.py",
        "runner/backpropagate_runner/export/push.py",
    },
    "matplotlib": {"runner/backpropagate_runner/plot.py"},
    "runpy": {
        "runner/backpropagate_runner/export/fetch_converter.py",
        "runner/backpropagate_runner/export/official.py",
    },
    "eval()": set(),
    "exec()": set(),
    "pickle": set(),
}


@pytest.mark.parametrize(("what", "doors"), _DOORS.items())
def test_the_world_is_reached_through_its_doors_only(what: str, doors: set[str]) -> None:
    assert {name_of(path) for path in modules() if what in reaches(path)} == doors


def test_only_rundir_spells_the_names_in_a_run_directory() -> None:
    names = {"run_history.json", "events.jsonl", "runner.log", "spec.json", "manifest.json", "checkpoints", "staging"}
    spelt = {name_of(path): sorted(names & set(string_constants(path))) for path in modules()}
    assert {path for path, found in spelt.items() if found} <= {"protocol/backpropagate_protocol/rundir.py"}
