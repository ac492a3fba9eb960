"""A resume keeps to what `auto` came to when the run began, or is refused; it never chooses anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.rundir import MANIFEST, Manifest
from backpropagate_protocol.spec import ModelSpec, TrainSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS, resumed, run
from tests.backends.torch_session import commit_again, make_job

BEGUN = Manifest(
    run_id="r",
    step=3,
    total_steps=9,
    samples_seen=24,
    order=1,
    micro_batch=8,
    accumulation=1,
    data_digest="d",
    spec_digest="s",
    backend="cuda",
    optimizer="paged_adamw_8bit",
    precision="nf4+bf16",
    model_revision="c" * 40,
)
MODEL = ModelSpec(name="mine", path="me/mine")
TRAIN = TrainSpec()


def _nothing(text: str, level: str) -> None:
    return


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ("nf4+bf16", ("bf16", True)),
        ("bf16", ("bf16", False)),
        ("fp16", ("fp16", False)),
        ("fp8+bf16", ("bf16", False)),
        ("", ("auto", None)),
    ],
)
def test_the_precision_of_the_beginning_is_kept(
    cpu: CpuBackend, recorded: str, expected: tuple[str, bool | None]
) -> None:
    from backpropagate_backends.torch_choices import model_of_run

    model = model_of_run(MODEL, msgspec.structs.replace(BEGUN, precision=recorded))
    assert (model.dtype, model.load_in_4bit) == expected
    assert model.revision == "c" * 40


def test_a_precision_that_cannot_be_had_here_is_another_run(cpu: CpuBackend) -> None:
    from backpropagate_backends.torch_choices import precision_of_run

    with pytest.raises(UserInputError, match="begun in fp16, and here: the CPU") as caught:
        precision_of_run(MODEL, msgspec.structs.replace(BEGUN, precision="fp16"), "cpu", _nothing, TRAIN)
    assert caught.value.code == "STATE_RUN_MISMATCH"


def test_the_optimizer_of_the_beginning_is_kept(cpu: CpuBackend) -> None:
    pytest.importorskip("bitsandbytes")
    from backpropagate_backends.torch_choices import optimizer_of_run
    from backpropagate_backends.torch_model import choose_precision

    precision = choose_precision(MODEL, "cpu", _nothing)
    assert optimizer_of_run(TRAIN, None, precision) == "adamw_torch"
    assert optimizer_of_run(TRAIN, BEGUN, precision) == "paged_adamw_8bit"


# bitsandbytes is found by nobody, as in an environment that never had it.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "bitsandbytes" else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def _code_of(program: str) -> str:
    """Runs `program` where bitsandbytes is not installed; it prints the code of the error that it meets."""
    child = subprocess.run([sys.executable, "-c", WITHOUT + program], capture_output=True, text=True, timeout=120)
    return child.stdout.strip() or child.stderr


def test_an_optimizer_that_cannot_be_had_here_is_another_run() -> None:
    program = """
from backpropagate_backends.torch_choices import optimizer_of_run
from backpropagate_backends.torch_model import choose_precision
from backpropagate_protocol.errors import UserInputError
from tests.backends.test_torch_choices import BEGUN, MODEL, TRAIN
try: optimizer_of_run(TRAIN, BEGUN, choose_precision(MODEL, "cpu", print))
except UserInputError as error: print(error.code, error.message)
"""
    told = _code_of(program)
    assert told.startswith("STATE_RUN_MISMATCH the run was begun with the optimizer paged_adamw_8bit"), told


def test_an_eight_bit_optimizer_without_its_package_is_refused_before_anything_is_loaded() -> None:
    program = """
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import InvalidSettingError
from tests.backends.test_torch_wishes import changed
try: CpuBackend().check(changed("train", optim="adamw_8bit"))
except InvalidSettingError as error: print(error.code, error.message)
"""
    assert (
        _code_of(program)
        == "CONFIG_INVALID_SETTING the optimizer adamw_8bit needs bitsandbytes, which is not installed"
    )


@pytest.mark.slow
@FOREIGN_WARNINGS
def test_a_run_says_what_auto_came_to_and_a_resume_keeps_to_it(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    """The state of another optimizer would be loaded into this one's: a fault at best."""
    job = make_job(tiny, steps=4)
    first = run(cpu, job, rows, tmp_path / "first", save_at=[3])
    checkpoint = first.session.checkpoint(3)
    manifest = msgspec.json.decode((checkpoint / MANIFEST).read_bytes(), type=Manifest)
    assert (manifest.optimizer, manifest.precision, manifest.model_revision) == ("adamw_torch", "fp32", "")

    commit_again(checkpoint, precision="bf16")
    second = run(cpu, resumed(job, checkpoint), rows, tmp_path / "second")
    assert second.session.begun is not None
    assert second.session.begun.precision == "bf16"
