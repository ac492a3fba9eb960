"""The command line as its users meet it: real processes, exit codes, one error shape, data on stdout and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate.cli import COMMANDS, LazyGroup, root
from backpropagate.commands.flags import normalise
from backpropagate_protocol.catalogue import CATALOGUE


def backprop(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("BACKPROPAGATE_")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        cwd=cwd,
        env={**env, **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_help_lists_every_command_and_imports_none_of_them(tmp_path: Path) -> None:
    program = (
        "import sys; from backpropagate.cli import run; code = run(['--help']); "
        "heavy = {'anyio', 'msgspec', 'orjson', 'rich', 'pynvml', 'filelock', 'torch', 'numpy'} & set(sys.modules); "
        "ours = [m for m in sys.modules if m.startswith('backpropagate.commands.')]; "
        "sys.exit(f'{heavy} {ours}' if heavy or ours or code else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert done.returncode == 0, done.stderr
    for name, entry in COMMANDS.items():
        assert (name in done.stdout) == bool(entry.section)


def test_the_summaries_on_the_help_page_are_those_of_the_commands() -> None:
    assert isinstance(root, LazyGroup)
    for name, entry in COMMANDS.items():
        command = root.get_command(None, name)  # type: ignore[arg-type]  # the context is not looked at
        assert command is not None
        assert command.get_short_help_str(200) == entry.summary


def test_every_command_has_json_and_verbose() -> None:
    assert isinstance(root, LazyGroup)
    for name in COMMANDS:
        command = root.get_command(None, name)  # type: ignore[arg-type]  # as above
        assert command is not None
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {"--json", "--verbose"} <= flags, name


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["trian"], "INPUT_VALIDATION_FAILED", "did you mean train?"),
        (["train", "--stepps", "3"], "INPUT_VALIDATION_FAILED", "--steps"),
        (["train"], "INPUT_VALIDATION_FAILED", "no training data was named"),
        (["train", "--data", "nowhere.jsonl", "--model", "tiny"], "INPUT_DATASET_NOT_FOUND", "nowhere.jsonl"),
        (["train", "--data", "d.jsonl", "--model", "./nowhere"], "INPUT_MODEL_NOT_FOUND", "nowhere"),
        (["train", "--data", "d.jsonl", "--model", "tiny", "--steps", "0"], "CONFIG_INVALID_SETTING", "--steps: '0'"),
        (["train", "--data", "d.jsonl", "--lr", "fast"], "CONFIG_INVALID_SETTING", "--learning-rate: 'fast'"),
        (["train", "--data", "d.jsonl", "--report-to", "neptune"], "CONFIG_INVALID_SETTING", "neptune"),
        (["train", "--data", "d.jsonl", "--backend", "toy", "-o", "d.jsonl"], "CONFIG_OUTPUT_UNWRITABLE", "d.jsonl"),
        (["train", "--resume", "abc", "--lr", "1e-4"], "INPUT_VALIDATION_FAILED", "--learning-rate"),
        (["resume", "abc"], "INPUT_RUN_NOT_FOUND", "abc"),
        (["show-run", "abc"], "INPUT_RUN_NOT_FOUND", "abc"),
        (["validate", "nowhere.jsonl"], "INPUT_DATASET_NOT_FOUND", "nowhere.jsonl"),
        (["generate", "./nowhere", "hello"], "INPUT_MODEL_NOT_FOUND", "nowhere"),
        (["generate", "tiny", "hello", "--seed", "5"], "CONFIG_INVALID_SETTING", "--seed would have no effect"),
        (["chat", "tiny", "--seed", "5"], "CONFIG_INVALID_SETTING", "--seed would have no effect"),
        (["list-runs", "--all", "--limit", "2"], "CONFIG_INVALID_SETTING", "--limit would have no effect"),
        (["merge", "latest", "--in", "elsewhere"], "INPUT_RUN_NOT_FOUND", "no campaign in"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_wish_is_one_coded_error_with_advice(
    tmp_path: Path, arguments: list[str], code: str, words: str
) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    plain = backprop(*arguments, cwd=tmp_path)

    assert plain.returncode == 1
    assert plain.stdout == ""
    first, second = plain.stderr.splitlines()[:2]
    assert first.startswith(f"[{code}]: ")
    assert words in first
    assert second.startswith("What to do: ")
    assert "Traceback" not in plain.stderr
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("arguments", "message", "advice"),
    [
        (["--method", "orpo"], "toy trains by the method sft only, not by orpo", "Use --backend auto, cuda or cpu."),
        (["--mode", "full"], "the backend toy has no mode full", "Use --backend auto, cuda or cpu."),
        (["--init-lora-weights", "loftq"], "not part of this release yet", "Give one of default, gaussian."),
        (["--logging-steps", "10"], "'10' has no effect, since steps are reported as they come", "Give 1."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_refused_with_what_can(
    tmp_path: Path, arguments: list[str], message: str, advice: str
) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    done = backprop("train", "--data", "d.jsonl", "--backend", "toy", *arguments, cwd=tmp_path)
    first, second = done.stderr.splitlines()

    assert done.returncode == 1
    assert message in first
    assert second == f"What to do: {advice}"


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["train", "--nope"], ["train"], ["resume", "abc"], ["train", "-d", "d", "--lr", "x"]],
    ids=" ".join,
)
def test_with_json_an_error_is_one_document_on_stdout(tmp_path: Path, arguments: list[str]) -> None:
    done = backprop(*arguments, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)

    assert done.returncode == document["error"]["exit_code"] == 1
    assert document["error"]["code"] in CATALOGUE
    assert document["error"]["suggestion"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "arguments",
    [["info"], ["info", "--error-codes"], ["info", "--env-vars"], ["config"], ["list-runs"], ["completion", "bash"]],
    ids=" ".join,
)
def test_with_json_an_answer_is_one_document_on_stdout(tmp_path: Path, arguments: list[str]) -> None:
    done = backprop(*arguments, "--json", cwd=tmp_path)

    assert done.returncode == 0
    assert json.loads(done.stdout)
    assert done.stderr == ""


def test_secrets_do_not_reach_the_screen(tmp_path: Path) -> None:
    token = "hf_" + "abcdefghij0123456789"
    plain = backprop("train", "--data", f"{token}.jsonl", cwd=tmp_path)
    as_json = backprop("train", "--data", f"{token}.jsonl", "--json", cwd=tmp_path)

    assert "[redacted]" in plain.stderr
    assert token not in plain.stderr + plain.stdout + as_json.stderr + as_json.stdout


def test_a_fault_of_ours_is_one_line_and_a_traceback_only_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "runs").mkdir()
    program = (
        "import sys\n"
        "from backpropagate import cli\n"
        "cli.COMMANDS['info'] = cli._Entry('nothing', 'info', '', 'System')\n"
        "sys.exit(cli.run(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-P", "-c", program, "info"]
    quiet = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    verbose = subprocess.run([*command, "--verbose"], capture_output=True, text=True, cwd=tmp_path, check=False)

    assert quiet.returncode == verbose.returncode == 2
    assert quiet.stderr.startswith("[RUNTIME_INTERNAL]: ModuleNotFoundError: ")
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in verbose.stderr


def test_config_says_where_a_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("BACKPROPAGATE_LORA__R=16\n")
    done = backprop("config", "--json", cwd=tmp_path, BACKPROPAGATE_MODEL__NAME="tiny", BACKPROPAGATE_LORA__X="1")
    document = json.loads(done.stdout)
    found = {setting["key"]: (setting["value"], setting["source"]) for setting in document["settings"]}

    assert found["lora.r"] == (16, ".env: BACKPROPAGATE_LORA__R")
    assert found["model.name"] == ("tiny", "environment BACKPROPAGATE_MODEL__NAME")
    assert found["training.seed"] == (42, "default")
    assert len(document["warnings"]) == 1


def test_config_shows_the_values_that_a_run_would_have(tmp_path: Path) -> None:
    def values(**variables: str) -> dict[str, object]:
        document = json.loads(backprop("config", "--json", cwd=tmp_path, **variables).stdout)
        return {s["key"]: s["value"] for s in document["settings"]} | {"batch": document["effective_batch"]}

    plain = values()
    assert (plain["training.max_steps"], plain["lora.alpha"], plain["batch"]) == (100, 512, 8)
    assert plain["training.batch_size"] is None
    said = values(BACKPROPAGATE_TRAINING__EPOCHS="2", BACKPROPAGATE_LORA__R="4", BACKPROPAGATE_TRAINING__BATCH_SIZE="3")
    assert (said["training.max_steps"], said["lora.alpha"], said["batch"]) == (None, 8, 6)
    assert said["training.gradient_accumulation"] == 2


def test_unsloth_may_be_asked_for_as_a_backend(tmp_path: Path) -> None:
    said = [backprop("setup", *how, "--dry-run", cwd=tmp_path) for how in (["--unsloth"], ["--backend", "unsloth"])]
    assert said[0].stdout == said[1].stdout != ""


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "backpropagate", "info", "--env-vars"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)

    assert errors == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("max_steps", "steps"),
        ("per-device-train-batch-size", "batch-size"),
        ("gradient_accumulation_steps", "gradient-accumulation"),
        ("num-train-epochs", "epochs"),
        ("max_seq_length", "max-length"),
        ("output_dir", "output"),
        ("model_name_or_path", "model"),
        ("dataset-name", "data"),
        ("lora-rank", "lora-r"),
        ("lr-scheduler-type", "scheduler"),
        ("no-load-in-4bit", "no-4bit"),
        ("learning_rate", "learning-rate"),
    ],
)
def test_the_spellings_of_other_tools_are_understood(foreign: str, ours: str) -> None:
    assert normalise(foreign) == ours


def test_a_shell_completes_commands_and_choices(tmp_path: Path) -> None:
    commands = backprop(cwd=tmp_path, _BACKPROP_COMPLETE="bash_complete", COMP_WORDS="backprop trai", COMP_CWORD="1")
    choices = backprop(
        cwd=tmp_path, _BACKPROP_COMPLETE="bash_complete", COMP_WORDS="backprop train --backend c", COMP_CWORD="3"
    )

    assert commands.stdout.split() == ["plain,train"]
    assert choices.stdout.split() == ["plain,cuda", "plain,cpu"]


def test_powershell_completes_too(tmp_path: Path) -> None:
    """The protocol only: no PowerShell is asked here. It leaves COMP_CWORD out where nothing has been typed."""
    ask = {"_BACKPROP_COMPLETE": "powershell_complete"}
    commands = backprop(cwd=tmp_path, COMP_WORDS="backprop trai", COMP_CWORD="trai", **ask)
    choices = backprop(cwd=tmp_path, COMP_WORDS="backprop train --backend", **ask)
    script = backprop("completion", "powershell", cwd=tmp_path)

    assert commands.stdout == "train\tFine-tune a model under supervision.\n"
    assert [line.split("\t")[0] for line in choices.stdout.splitlines()] == ["auto", "cuda", "cpu", "mlx"]
    assert "Register-ArgumentCompleter -Native -CommandName backprop" in script.stdout


def test_validate_reports_what_is_wrong_and_fails(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text('{"text": "hello"}\n')
    (tmp_path / "bad.jsonl").write_text('{"text": "hello"}\nnonsense\n')
    good = backprop("validate", "good.jsonl", "--json", cwd=tmp_path)
    bad = backprop("validate", "bad.jsonl", "--json", cwd=tmp_path)

    assert good.returncode == 0
    assert json.loads(good.stdout)["rows"] == 1
    assert bad.returncode == 1
    assert json.loads(bad.stdout)["bad"] == 1
    assert json.loads(bad.stdout)["error"]["code"] == "INPUT_DATASET_PARSE_FAILED"


def test_without_the_training_packages_train_names_the_extra_in_one_line(tmp_path: Path) -> None:
    """A path hook that hides the frameworks stands for an environment without them."""
    (tmp_path / "d.jsonl").write_text('{"text": "hello"}\n')
    program = (
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'trl'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
        "from backpropagate.cli import run\n"
        "sys.exit(run(['train', '--data', 'd.jsonl', '--model', 'tiny']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "[DEP_RUNNER_MISSING]: training needs torch, trl, not installed here"
    assert "pip install 'backpropagate[cuda]'" in done.stderr
