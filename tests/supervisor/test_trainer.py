"""The three lines, in real scripts: what comes back, what is raised, and that nobody who watches can harm a run."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backpropagate import Trainer, TrainingCallback, TrainingRun
from backpropagate.exceptions import (
    BackpropagateError,
    GPUMemoryError,
    InvalidSettingError,
    TrainingError,
    UserInputError,
)
from backpropagate.keep import locks
from backpropagate.wishes.options import BY_ARGUMENT
from backpropagate_protocol.rundir import OutputDir
from tests.waiting import eventually


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(40)))
    return path


def toy(tmp_path: Path, **arguments: object) -> Trainer:
    wishes: dict[str, object] = {"backend": "toy", "output_dir": tmp_path / "out", "progress": False, **arguments}
    return Trainer("any", **wishes)  # type: ignore[arg-type]  # as a user's own dictionary would be handed over


def endless(trainer: Trainer, data: Path, **arguments: object) -> TrainingRun:
    """More steps than anybody waits for: something has to stop it."""
    return trainer.train(data, steps=50_000_000, **arguments)  # type: ignore[arg-type]  # handed through


def test_a_training_gives_back_its_run(tmp_path: Path, data: Path) -> None:
    run = toy(tmp_path).train(data, steps=30)

    assert (run.status, run.steps, run.total_steps, run.samples_seen) == ("completed", 30, 30, 240)
    assert run.completed
    assert run.final_loss is not None
    assert run.loss_history
    assert run.loss_steps[-1] == 30
    assert run.adapter_path is not None
    assert run.adapter_path.is_dir()
    assert run.output_path == tmp_path / "out" / "runs" / run.run_id
    assert (run.recoveries, run.recovery_count) == ([], 0)
    assert str(run).startswith(f"run {run.run_id[:8]} completed: 30/30 steps")


def test_on_step_can_stop_a_run_which_is_then_saved_and_resumable(tmp_path: Path, data: Path) -> None:
    seen: list[int] = []

    def enough(step: int, loss: float | None) -> bool:
        seen.append(step)
        return False

    run = endless(toy(tmp_path), data, on_step=enough)

    assert run.status == "interrupted"
    assert run.steps >= seen[0]
    assert (run.output_path / "checkpoints" / f"step-{run.steps:08d}").is_dir()

    again = toy(tmp_path).resume(run.run_id[:6], on_step=lambda step, loss: False)
    assert again.run_id == run.run_id
    assert again.steps >= run.steps


def test_a_callback_that_fails_is_dropped_and_the_run_goes_on(tmp_path: Path, data: Path) -> None:
    def broken(step: int, loss: float | None) -> None:
        raise RuntimeError("no more")

    with pytest.warns(UserWarning, match="RuntimeError: no more") as told:
        run = toy(tmp_path).train(data, steps=20, on_step=broken)

    assert run.status == "completed"
    line = broken.__code__.co_firstlineno + 1
    assert (told[0].filename, told[0].lineno) == (__file__, line)
    assert "follow.py" not in str(told[0].message)  # the traceback is the user's own
    assert run.callback_error == f"RuntimeError: no more ({__file__}:{line})"


def test_an_error_of_ours_in_a_callback_does_not_end_the_run_either(tmp_path: Path, data: Path) -> None:
    def asks_for_a_run_that_is_not_there(step: int, loss: float | None) -> None:
        toy(tmp_path).resume("no-such-run")

    with pytest.warns(UserWarning, match="RunNotFoundError"):
        run = toy(tmp_path).train(data, steps=20, on_step=asks_for_a_run_that_is_not_there)

    assert run.status == "completed"


def test_an_interrupt_while_a_callback_hears_the_last_events_loses_none_of_them(tmp_path: Path, data: Path) -> None:
    """At its first step the callback waits for the end, so that all the rest is told in one go; there it is interrupted."""
    heard: list[int] = []

    def slow_then_interrupted(step: int, loss: float | None) -> None:
        heard.append(step)
        if len(heard) == 1:
            eventually(lambda: b'"run_ended"' in journal_of(tmp_path), "the run is over")
        elif len(heard) == 2:
            raise KeyboardInterrupt

    run = toy(tmp_path).train(data, steps=2000, on_step=slow_then_interrupted)

    assert len(heard) >= 2
    assert (run.status, run.steps) == ("completed", 2000)


def journal_of(tmp_path: Path) -> bytes:
    (journal,) = (tmp_path / "out" / "runs").glob("*/events.jsonl")
    return journal.read_bytes()


def test_callbacks_hear_of_steps_checkpoints_and_the_end(tmp_path: Path, data: Path) -> None:
    steps: list[int] = []
    saved: list[Path] = []
    ended: list[TrainingRun] = []

    def note(step: int, loss: float | None) -> None:
        steps.append(step)

    callback = TrainingCallback(on_step=note, on_save=saved.append, on_complete=ended.append)
    run = toy(tmp_path, save_steps=10).train(data, steps=20, callback=callback)

    assert steps == list(range(1, 21))
    assert [path.name for path in saved] == ["step-00000010", "step-00000020"]
    assert ended == [run]


def test_a_failed_run_raises_the_exception_of_its_code_with_the_run_id(tmp_path: Path, data: Path) -> None:
    """The one row has no word that could carry loss, which only the child can find out."""
    data.write_text('{"wrong": 1}\n')
    heard: list[BackpropagateError] = []
    with pytest.raises(BackpropagateError) as caught:
        toy(tmp_path).train(data, steps=5, callback=TrainingCallback(on_error=heard.append))

    assert caught.value.code == "INPUT_DATASET_FORMAT_UNSUPPORTED"
    assert caught.value.run_id is not None
    assert (tmp_path / "out" / "runs" / caught.value.run_id).is_dir()
    assert heard == [caught.value]


def test_the_exception_tree_is_that_of_the_code(tmp_path: Path) -> None:
    from backpropagate_protocol.errors import error_for

    assert isinstance(error_for("RUNTIME_GPU_OOM", "x"), GPUMemoryError)


def test_the_arguments_of_trainer_are_those_of_the_table_with_their_defaults() -> None:
    """max_seq_length is a second name; progress is of the Trainer itself; callbacks and `resume` are no wishes."""
    extra = {"self", "more", "max_seq_length", "progress", "resume", "callback", "on_step"}
    for function in (Trainer.__init__, Trainer.train):
        parameters = inspect.signature(function).parameters
        named = {name: parameter for name, parameter in parameters.items() if name not in extra}

        assert set(named) <= set(BY_ARGUMENT)
        assert all(parameter.default is None for parameter in named.values())
        for name, parameter in named.items():
            kind = {"list": "Sequence[str]"}.get(BY_ARGUMENT[name].kind, BY_ARGUMENT[name].kind)
            assert kind in str(parameter.annotation), name


@pytest.mark.parametrize("argument", sorted(set(inspect.signature(Trainer.__init__).parameters) & set(BY_ARGUMENT)))
def test_every_argument_of_trainer_reaches_the_settings(tmp_path: Path, argument: str) -> None:
    """A list is a value that no option accepts, so a complaint about it shows that it arrived."""
    with pytest.raises(InvalidSettingError, match=argument):
        toy(tmp_path, **{argument: [1]}) if argument != "model" else Trainer([1])  # type: ignore[arg-type]


def test_a_wrong_argument_is_refused_when_the_trainer_is_made(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="learning_rate"):
        toy(tmp_path, learning_rate=-1)
    with pytest.raises(UserInputError, match="did you mean lora_r"):
        toy(tmp_path, lora_rr=3)
    toy(tmp_path, fp8=False, report_to="none", batch_size="auto")


@pytest.mark.parametrize(
    ("argument", "advice"),
    [({"use_unsloth": True}, "unsloth=True"), ({"train_on_responses": True}, "train_on='assistant'"),
     ({"dataset": "d.jsonl"}, "data="), ({"extra_callbacks": [1]}, "Leave it out.")],
)  # fmt: skip
def test_arguments_of_other_releases_are_refused_with_what_to_say_instead(
    tmp_path: Path, argument: dict[str, object], advice: str
) -> None:
    with pytest.raises((UserInputError, InvalidSettingError)) as caught:
        toy(tmp_path, **argument)

    assert advice in caught.value.suggestion
    toy(tmp_path, unsloth=False, packing=False)


@pytest.mark.parametrize("name", ["estimate_vram", "load_model"])
def test_methods_of_a_later_release_are_refused_with_a_code_and_are_not_there(tmp_path: Path, name: str) -> None:
    trainer = toy(tmp_path)
    with pytest.raises(BackpropagateError, match=f"Trainer.{name} is not part of this release") as caught:
        getattr(trainer, name)("x")

    assert caught.value.code == "INPUT_VALIDATION_FAILED"
    assert caught.value.suggestion
    assert not hasattr(trainer, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        trainer.nonsense  # type: ignore[attr-defined]  # noqa: B018 - it is not there, which is the point


def test_whole_passes_over_the_data_are_told_once_each(tmp_path: Path, data: Path) -> None:
    passes: list[int] = []
    trainer = toy(tmp_path, save_steps=4)
    trainer.train(data, steps=20, callback=TrainingCallback(on_epoch=passes.append))

    assert passes == [1, 2, 3, 4]


def test_a_resumed_run_accepts_no_other_data(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserInputError, match="data, steps"):
        toy(tmp_path).train(data, steps=3, resume="latest")


def test_a_finished_run_cannot_be_resumed(tmp_path: Path, data: Path) -> None:
    run = toy(tmp_path).train(data, steps=3)
    with pytest.raises(UserInputError) as caught:
        toy(tmp_path).resume(run.run_id)

    assert caught.value.code == "STATE_RUN_FINISHED"


def test_a_run_that_cannot_begin_raises_why_and_leaves_nothing_behind(tmp_path: Path, data: Path) -> None:
    """The second run finds the output folder taken by the first, which is stopped when the second has been refused."""
    refused: list[BackpropagateError] = []

    def second(step: int, loss: float | None) -> bool:
        if not refused:
            with pytest.raises(BackpropagateError) as caught:
                toy(tmp_path).train(data, steps=3)
            refused.append(caught.value)
        return False

    first = endless(toy(tmp_path), data, on_step=second)

    assert refused[0].code == "STATE_BUSY"
    assert [path.name for path in OutputDir(tmp_path / "out").runs.iterdir()] == [first.run_id]


def test_a_training_works_in_a_thread(tmp_path: Path, data: Path) -> None:
    found: list[TrainingRun] = []
    thread = threading.Thread(target=lambda: found.append(toy(tmp_path).train(data, steps=10)))
    thread.start()
    thread.join()

    assert found[0].status == "completed"


def script(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(text)
    return subprocess.Popen(
        [sys.executable, str(path)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def test_a_script_needs_no_main_guard_and_imports_no_framework(tmp_path: Path, data: Path) -> None:
    process = script(
        tmp_path,
        "import sys\n"
        "from backpropagate import Trainer\n"
        "run = Trainer('any', backend='toy').train('data.jsonl', steps=10)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "print(run.steps)\n",
    )
    out, err = process.communicate(timeout=120)

    assert (process.returncode, out) == (0, "10\n"), err
    assert "step 10/10" in err


def test_a_training_works_while_an_event_loop_is_running(tmp_path: Path, data: Path) -> None:
    process = script(
        tmp_path,
        "import asyncio\n"
        "from backpropagate import Trainer\n"
        "async def cell():\n"
        "    return Trainer('any', backend='toy', progress=False).train('data.jsonl', steps=10)\n"
        "print(asyncio.run(cell()).status)\n",
    )
    out, err = process.communicate(timeout=120)

    assert (process.returncode, out) == (0, "completed\n"), err


_ENDLESS = (
    "import signal\n"
    "from backpropagate import Trainer\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs are born deaf to it
    "first = lambda step, loss: step_once() \n"
    "done = []\n"
    "def step_once():\n"
    "    if not done:\n"
    "        done.append(1)\n"
    "        print('training', flush=True)\n"
    "run = Trainer('any', backend='toy', progress=False).train('data.jsonl', steps=50_000_000, on_step=first)\n"
    "print(run.status, run.steps)\n"
)


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
def test_an_interrupt_saves_and_gives_back_an_interrupted_run(tmp_path: Path, data: Path) -> None:
    process = script(tmp_path, _ENDLESS)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    status, steps = out.split()

    assert (process.returncode, status) == (0, "interrupted"), err
    assert list((tmp_path / "output" / "runs").glob(f"*/checkpoints/step-{int(steps):08d}"))


def test_when_the_owner_is_killed_the_run_saves_and_stops(tmp_path: Path, data: Path) -> None:
    from backpropagate.keep import history

    process = script(tmp_path, _ENDLESS)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.kill()
    process.communicate(timeout=120)
    output = OutputDir(tmp_path / "output")
    ended = threading.Event()
    while not ended.wait(0.05):
        if history.list_rows(output)[0].completed_at is not None:
            break

    row = history.list_rows(output)[0]
    assert row.status == "interrupted"
    assert row.checkpoint_path is not None
    assert Path(row.checkpoint_path).is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
def test_a_second_interrupt_ends_the_run_without_waiting(tmp_path: Path, data: Path) -> None:
    process = script(tmp_path, _ENDLESS)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)

    assert (process.returncode, out.split()[0]) == (0, "interrupted"), err


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_a_supervisor_that_is_killed_is_told_of_and_the_run_is_resumable(tmp_path: Path, data: Path) -> None:
    killed: list[int] = []

    def kill_the_supervisor(step: int, loss: float | None) -> None:
        if not killed:
            holder = locks.holder_of(locks.output_lock(OutputDir(tmp_path / "out")))
            assert holder is not None
            killed.append(holder.pid)
            os.kill(holder.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match="ended without a word") as caught:
        endless(toy(tmp_path, save_steps=1000), data, on_step=kill_the_supervisor)

    assert caught.value.run_id is not None
    assert f"backprop resume {caught.value.run_id[:8]}" in caught.value.suggestion
    assert toy(tmp_path).resume(on_step=lambda step, loss: False).run_id == caught.value.run_id
