"""`train`, `resume`, `list-runs`, `show-run` from end to end: real processes on the toy backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from backpropagate import Trainer
from backpropagate.exceptions import BusyError
from backpropagate.keep import history
from backpropagate.keep.record import RunRow
from tests.waiting import eventually

ENDLESS = "50000000"  # steps: more than anybody waits for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = "".join(f'{{"text": "row number {i}"}}\n' for i in range(40))
    (tmp_path / "d.jsonl").write_text(rows)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def until_it_trains(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "step 1/" in line:
            return


def backprop(folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def train(folder: Path, *arguments: str) -> tuple[int, str, str]:
    return backprop(folder, "train", "--data", "d.jsonl", "--backend", "toy", *arguments)


def the_row(folder: Path) -> RunRow:
    (row,) = history.list_rows(folder / "output")
    return row


def test_a_training_ends_with_its_answer_on_stdout_and_its_progress_on_stderr(folder: Path) -> None:
    code, out, err = train(folder, "--steps", "20")
    row = the_row(folder)

    assert code == 0
    assert out.splitlines()[:3] == [f"run      {row.run_id}", "status   completed", "steps    20/20"]
    assert all(line.startswith(row.run_id[:8]) for line in err.splitlines())
    assert "step 20/20" in err


def test_with_json_a_training_is_one_document_and_silent_otherwise(folder: Path) -> None:
    code, out, err = train(folder, "--steps", "20", "--json")
    document = json.loads(out)

    assert (code, err) == (0, "")
    assert (document["status"], document["step"], document["exit_code"]) == ("completed", 20, 0)
    assert Path(document["adapter"]).is_dir()


def test_the_spellings_of_trl_start_the_same_training(folder: Path) -> None:
    flags = "--dataset d.jsonl --backend toy --max_steps 6 --per_device_train_batch_size 2 --gradient_accumulation_steps 3 --learning_rate 0.01 --output_dir here"
    code, _, err = backprop(folder, "train", *flags.split())
    (row,) = history.list_rows(folder / "here")

    assert code == 0, err
    assert (row.steps, row.samples_seen, row.hyperparameters["learning_rate"]) == (6, 36, 0.01)


def test_a_fault_is_recovered_from_and_told(folder: Path) -> None:
    code, out, err = train(folder, "--steps", "30", "--fault", "oom@9")

    assert code == 0
    assert "recovered from 1" in out
    assert "RUNTIME_GPU_OOM" in err
    assert the_row(folder).recoveries == 1


def test_a_json_document_has_what_was_recovered_from_as_a_number_and_in_words(folder: Path) -> None:
    document = json.loads(train(folder, "--steps", "30", "--fault", "oom@9", "--json")[1])

    assert document["recoveries"] == len(document["recovered"]) == 1
    assert document["recovered"][0].startswith("RUNTIME_GPU_OOM at step ")


def test_a_run_is_shown_in_words(folder: Path) -> None:
    train(folder, "--steps", "30", "--batch-size", "4", "--save-steps", "5", "--fault", "oom@9")
    lines = [" ".join(line.split()) for line in backprop(folder, "show-run", "latest")[1].splitlines()]

    assert "lora_targets all-linear" in lines
    assert lines[lines.index("micro_batch_history:") + 1 :][:2] == [
        "batch 4 × 2 from step 0",
        "batch 2 × 4 from step 5",
    ]


@pytest.mark.parametrize("arguments", [[], ["--verbose"]], ids=["quiet", "verbose"])
def test_the_traceback_of_the_child_is_shown_only_with_verbose(folder: Path, arguments: list[str]) -> None:
    code, _, err = train(folder, "--steps", "30", "--fault", "error@9", *arguments)

    assert code == 0
    assert ("Traceback (most recent call last)" in err) == bool(arguments)


def test_the_log_of_a_detached_verbose_training_has_the_traceback(folder: Path) -> None:
    out = train(folder, "--steps", "30", "--fault", "error@9", "--verbose", "--detach", "--json")[1]
    run = folder / "output" / "runs" / json.loads(out)["run_id"]
    eventually(lambda: '"event":"run_ended"' in (run / "events.jsonl").read_text(), "it ends")

    assert "Traceback (most recent call last)" in (run / "supervisor.log").read_text(encoding="utf-8")


def test_without_oom_recovery_the_same_fault_is_the_end(folder: Path) -> None:
    code, out, err = train(folder, "--steps", "30", "--fault", "oom@9:0", "--no-oom-recovery")
    row = the_row(folder)

    assert (code, out) == (2, "")
    assert row.status == "failed"
    last = err.splitlines()[-3:]
    assert last[0].startswith("[RUNTIME_GPU_OOM]: ")
    assert last[1].startswith("What to do: ")
    assert last[2] == f"Run: {row.run_id}"


def test_a_failed_training_with_json_carries_the_error_in_its_document(folder: Path) -> None:
    code, out, _ = train(folder, "--steps", "30", "--fault", "nan@3:0", "--json")
    document = json.loads(out)

    assert code == document["exit_code"] == document["error"]["exit_code"] == 2
    assert document["error"]["code"] == "RUNTIME_LOSS_DIVERGED"
    assert document["error"]["run_id"] == document["run_id"]


def test_bad_rows_end_a_training_with_exit_code_1(folder: Path) -> None:
    (folder / "d.jsonl").write_text('{"text": "fine"}\nnonsense\n')
    code, _, err = train(folder, "--steps", "3")

    assert code == 1
    assert "[INPUT_DATASET_PARSE_FAILED]" in err or "[INPUT_DATASET_VALIDATION_FAILED]" in err
    assert "line 2" in err
    assert train(folder, "--steps", "3", "--on-bad-row", "skip", "-o", "other")[0] == 0


def test_a_fault_that_is_misspelled_is_refused(folder: Path) -> None:
    code, _, err = train(folder, "--fault", "oom5")

    assert code == 1
    assert "KIND@STEP" in err


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C cannot be sent to one process there")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stopped_training_is_resumable(folder: Path, number: signal.Signals, code: int) -> None:
    process = start(folder, "train", "-d", "d.jsonl", "--backend", "toy", "--steps", ENDLESS)
    until_it_trains(process)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=120)
    row = the_row(folder)

    assert process.returncode == code
    assert (row.status, row.exit_code) == ("interrupted", code)
    assert f"backprop resume {row.run_id[:8]}" in err

    again = start(folder, "resume", "latest", "--json")
    events = folder / "output" / "runs" / row.run_id / "events.jsonl"
    trains = threading.Event()
    while not trains.wait(0.02):
        if events.read_text().count('"event":"model_ready"') == 2:
            trains.set()
    os.kill(again.pid, number)
    document = json.loads(again.communicate(timeout=120)[0])
    assert again.returncode == document["exit_code"] == document["error"]["exit_code"] == code
    assert f"backprop resume {row.run_id[:8]}" in document["error"]["suggestion"]

    _, out, _ = backprop(folder, "show-run", row.run_id[:5], "--json")
    assert json.loads(out)["checkpoint_path"]


def test_an_interrupted_training_is_taken_up_where_it_was(folder: Path) -> None:
    """Every attempt of the first supervisor fails before step 25; the second has the spec without that fault."""
    code, _, err = train(folder, "--steps", "60", "--save-steps", "10", "--fault", "error@25:0")
    row = the_row(folder)
    assert (code, row.status) == (2, "failed"), err

    spec = folder / "output" / "runs" / row.run_id / "spec.json"
    mended = {**json.loads(spec.read_text()), "faults": []}
    spec.write_text(json.dumps(mended))
    code, out, err = backprop(folder, "resume", row.run_id[:6])

    assert code == 0, err
    assert "from step 20" in err
    assert "steps    60/60" in out
    assert the_row(folder).samples_seen == 480


def test_a_finished_run_is_not_resumed(folder: Path) -> None:
    assert train(folder, "--steps", "3")[0] == 0
    code, out, _ = backprop(folder, "resume", "latest", "--json")

    assert code == 1
    assert json.loads(out)["error"]["code"] == "STATE_RUN_FINISHED"


def test_a_second_training_in_the_same_folder_is_told_who_has_it_and_leaves_nothing(folder: Path) -> None:
    first = start(folder, "train", "-d", "d.jsonl", "--backend", "toy", "--steps", ENDLESS)
    until_it_trains(first)
    code, _, err = train(folder, "--steps", "3")
    first.terminate()
    first.communicate(timeout=120)

    assert code == 75
    assert err.startswith("[STATE_BUSY]: ")
    assert str(first.pid) in err
    assert "Run: " not in err
    assert len(list((folder / "output" / "runs").iterdir())) == 1


def test_a_resume_that_cannot_begin_leaves_a_run_without_a_journal_as_it_is(folder: Path) -> None:
    assert train(folder, "--steps", "20")[0] == 0
    run = folder / "output" / "runs" / the_row(folder).run_id
    (run / "events.jsonl").unlink()
    first = start(folder, "train", "-d", "d.jsonl", "--backend", "toy", "--steps", ENDLESS)
    until_it_trains(first)
    (folder / "output" / "run_history.json").unlink(missing_ok=True)
    code, _, err = backprop(folder, "resume", run.name)
    with pytest.raises(BusyError):
        Trainer("any", output_dir=folder / "output", progress=False).resume(run.name)
    first.terminate()
    first.communicate(timeout=120)

    assert code == 75, err
    assert list((run / "checkpoints").iterdir())
    assert list((run / "adapter").iterdir())


def test_a_detached_training_goes_on_by_itself(folder: Path) -> None:
    code, out, err = train(folder, "--steps", "20", "--detach", "--json")
    document = json.loads(out)
    ended = threading.Event()
    while not ended.wait(0.05):
        if the_row(folder).status != "running":
            break

    assert (code, err) == (0, "")
    assert the_row(folder).run_id == document["run_id"]
    assert the_row(folder).status == "completed"


def test_a_detached_training_says_how_it_is_stopped_and_then_how_it_goes_on(folder: Path) -> None:
    code, out, err = train(folder, "--steps", ENDLESS, "--detach")
    short = out[:8]
    stopped = backprop(folder, "stop", "latest")
    again = backprop(folder, "stop", short, "--json")

    assert code == 0
    assert err.splitlines()[-1] == f"Stop it with: backprop stop {short}"
    row = the_row(folder)
    assert stopped[:2] == (0, f"run {short}: interrupted at step {row.steps}/{ENDLESS}\ngo on with: backprop resume {short}\n")  # fmt: skip
    assert stopped[2] == f"run {short} is asked to save and end; waiting until it has\n"
    assert (row.status, row.exit_code) == ("interrupted", 75)
    assert again[0] == 1
    assert json.loads(again[1])["error"]["code"] == "STATE_RUN_NOT_RUNNING"


def test_a_detached_training_that_cannot_begin_says_why(folder: Path) -> None:
    first = start(folder, "train", "-d", "d.jsonl", "--backend", "toy", "--steps", ENDLESS)
    until_it_trains(first)
    code, _, err = train(folder, "--steps", "3", "--detach")
    first.terminate()
    first.communicate(timeout=120)

    assert code == 75
    assert err.startswith("[STATE_BUSY]: ")


def test_a_detached_supervisor_that_is_given_up_is_gone_before_its_run_is_discarded(folder: Path) -> None:
    """With no patience at all: it has only just been started when it is given up."""
    program = (
        "import sys\n"
        "from backpropagate import cli\n"
        "from backpropagate.commands import supervising\n"
        "supervising._DETACH_PATIENCE = -1.0\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    flags = ["train", "-d", "d.jsonl", "--backend", "toy", "--steps", ENDLESS, "--detach"]
    done = subprocess.run([sys.executable, "-P", "-c", program, *flags], cwd=folder, capture_output=True, timeout=120, check=False)  # fmt: skip

    assert b"the detached supervisor did not begin" in done.stderr
    assert not (folder / "output").exists()
    assert not [p for p in psutil.process_iter() if "_supervise" in command_of(p) and str(folder) in command_of(p)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.Error, OSError):
        return ""


def test_the_history_is_listed_filtered_and_made_again(folder: Path) -> None:
    train(folder, "--steps", "3", "--name", "first")
    train(folder, "--steps", "4", "--fault", "nan@2:0")
    _, plain, _ = backprop(folder, "list-runs")
    _, failed, _ = backprop(folder, "list-runs", "--status", "failed", "--json")
    (folder / "output" / "run_history.json").write_text("torn")
    _, again, _ = backprop(folder, "list-runs", "--rebuild", "--json")
    _, limited, _ = backprop(folder, "list-runs", "--limit", "1", "--json")

    assert [line.split()[1] for line in plain.splitlines()] == ["status", "failed", "completed"]
    assert "(first)" in plain.splitlines()[2]
    assert [row["status"] for row in json.loads(failed)["runs"]] == ["failed"]
    assert {row["status"] for row in json.loads(again)["runs"]} == {"failed", "completed"}
    assert len(json.loads(limited)["runs"]) == 1


def test_with_wait_a_resumed_run_begins_when_the_folder_is_free(folder: Path) -> None:
    train(folder, "--steps", "30", "--fault", "error@9:1", "--fault", "error@9:2")
    row = the_row(folder)
    first = start(folder, "train", "-d", "d.jsonl", "--backend", "toy", "--steps", ENDLESS)
    until_it_trains(first)
    second = start(folder, "resume", row.run_id, "--wait")
    first.terminate()
    first.communicate(timeout=120)
    _, err = second.communicate(timeout=120)

    assert second.returncode == 0, err


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pseudo-terminal to close")
def test_a_terminal_that_is_closed_does_not_end_the_training(folder: Path) -> None:
    ours, theirs = os.openpty()
    command = [
        sys.executable,
        "-P",
        "-m",
        "backpropagate",
        "train",
        "-d",
        "d.jsonl",
        "--backend",
        "toy",
        "--steps",
        "20000",
    ]
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    assert os.read(ours, 1)
    os.close(ours)

    assert process.wait(timeout=120) == 0
    assert the_row(folder).status == "completed"


@pytest.mark.slow
def test_the_bundled_model_is_trained_recovers_and_answers(folder: Path) -> None:
    """The real thing: TRL on the bundled base, out of memory at step 4, then a question to the result."""
    turns = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(16)))
    flags = (
        "--data chat.jsonl --model tiny --backend cpu --steps 6 --batch-size 4 --lora-r 8 --save-steps 2 --fault oom@4"
    )
    code, out, err = backprop(folder, "train", *flags.split(), "--json")
    assert code == 0, out + err

    document = json.loads(out)
    asked, answer, err = backprop(folder, "generate", document["run_id"][:8], "hello", "--max-new-tokens", "8")
    row = the_row(folder)

    assert (document["step"], document["recoveries"], document["samples_seen"]) == (6, 1, 48)
    assert [size for _, size in row.micro_batch_history] == [4, 2]
    assert asked == 0, err
    assert answer.strip()
