"""Checkpoints are made when the session says so and only then, hold no pickle of ours, and may fail."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import LossDivergedError
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.rundir import MANIFEST
from tests.backends.torch_runs import FOREIGN_WARNINGS, resumed, run
from tests.backends.torch_session import KeepingSession, commit_again, make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


def test_the_save_steps_of_an_old_state_have_no_say(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    first = run(cpu, make_job(tiny), rows, tmp_path / "a", save_at=[3])
    checkpoint = first.session.checkpoint(3)
    state = checkpoint / "trainer_state.json"
    greedy = json.loads(state.read_text()) | {"save_steps": 1, "logging_steps": 500, "eval_steps": 1}
    state.write_text(json.dumps(greedy))
    commit_again(checkpoint)

    again = run(cpu, resumed(make_job(tiny), checkpoint), rows, tmp_path / "b", save_at=[9])
    assert [path.name for path in again.session.checkpoints.iterdir()] == ["step-00000009"]
    assert len(again.session.progress) == 9  # each of its steps is heard of, whatever the old logging_steps were
    assert again.done.digest == first.done.digest


def test_a_checkpoint_holds_the_state_and_nothing_else(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    made = run(cpu, make_job(tiny), rows, tmp_path, save_at=[3, 12])
    names = {path.name for path in made.session.checkpoint(3).iterdir()}
    needed = {"adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert names >= needed | {"trainer_state.json", MANIFEST}
    assert "training_args.bin" not in names  # a pickle of a whole object, which nobody needs
    assert not any(name.startswith("tokenizer") for name in names)
    targets = json.loads((made.session.checkpoint(3) / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)  # PEFT's own order is another one in each process


def test_the_state_does_not_grow_with_the_run(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    made = run(cpu, make_job(tiny), rows, tmp_path, save_at=[3, 12])
    sizes = [(made.session.checkpoint(step) / "trainer_state.json").stat().st_size for step in (3, 12)]
    assert abs(sizes[1] - sizes[0]) < 64


def test_every_part_of_a_checkpoint_loads_without_running_code(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    import torch
    from transformers.trainer_pt_utils import safe_globals

    made = run(cpu, make_job(tiny, steps=2), rows, tmp_path, save_at=[2])
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with safe_globals():
            assert torch.load(made.session.checkpoint(2) / name, weights_only=True)


if sys.platform != "win32":
    import resource

    def limit_at(step: int, size: int) -> Callable[[int], None]:
        """From `step` to the one after it, no file can grow beyond `size` bytes: the system itself refuses the write."""
        old = resource.getrlimit(resource.RLIMIT_FSIZE)

        def on_step(now: int) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]) if now == step else old)

        return on_step

    # The adapter has 69 kB and the optimizer 155 kB: the first limit stops the one, the second the other.
    @pytest.mark.parametrize("size", [30_000, 100_000])
    def test_a_checkpoint_that_cannot_be_written_is_told_and_training_goes_on(
        cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path, size: int
    ) -> None:
        undisturbed = run(cpu, make_job(tiny), rows, tmp_path / "a")
        made = run(cpu, make_job(tiny), rows, tmp_path / "b", save_at=[5, 9], on_step=limit_at(5, size))
        assert len(made.session.failures) == 1
        assert [path.name for path in made.session.checkpoints.iterdir()] == ["step-00000009"]
        assert made.done.digest == undisturbed.done.digest


def test_weights_that_are_not_finite_are_no_result(cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path) -> None:
    job = make_job(tiny, steps=4)
    train = msgspec.structs.replace(job.spec.train, learning_rate=1e30, warmup_steps=0)
    wild = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train))
    with pytest.raises(LossDivergedError, match="not finite"):
        run(cpu, wild, rows, tmp_path)
    assert not (tmp_path / "staging" / "adapter").exists()


def test_a_loss_that_is_not_finite_reaches_the_session_at_its_step(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    job = make_job(tiny, steps=4)
    train = msgspec.structs.replace(job.spec.train, learning_rate=1e30, warmup_steps=0)
    wild = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train))
    session = KeepingSession(wild, tmp_path, rows)
    with pytest.raises(LossDivergedError):
        cpu.train(session, rows)
    losses = [progress.loss for progress in session.progress]
    assert any(loss is not None and not math.isfinite(loss) for loss in losses)


def test_the_adapter_has_the_plain_layout_and_names_its_base(
    cpu: CpuBackend, tiny: Path, rows: Prepared, tmp_path: Path
) -> None:
    adapter = Path(run(cpu, make_job(tiny, steps=2), rows, tmp_path).done.adapter)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny)
    names = {path.name for path in adapter.iterdir()}
    assert {"adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
