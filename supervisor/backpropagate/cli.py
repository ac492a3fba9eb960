"""The `backprop` command: finds the command that was meant, and turns whatever it raises into one message and exit code.

Commands are imported when they are called; the help page imports none of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import click

from backpropagate import __version__
from backpropagate.doors.environ import environment
from backpropagate.wishes.suggest import did_you_mean

_COMPLETION = "_BACKPROP_COMPLETE"  # set by a shell that wants candidates; read by click


class _Entry(NamedTuple):
    module: str
    attribute: str
    summary: str
    section: str


# The summaries are written here so that the help page needs no import; a test holds them against the commands.
COMMANDS: dict[str, _Entry] = {
    "train": _Entry("train", "train", "Fine-tune a model under supervision.", "Training"),
    "estimate": _Entry("estimate", "estimate", "Estimate memory, disk, time and energy of a training.", "Training"),
    "multi-run": _Entry("multi_run", "multi_run", "Train a campaign: several runs, merged after each.", "Training"),
    "resume": _Entry("train", "resume", "Go on with an interrupted or failed run.", "Training"),
    "stop": _Entry("stop", "stop", "Stop a running run: it saves, ends, and can be gone on with.", "Training"),
    "merge": _Entry("merge", "merge", "Merge a campaign's runs once more, by any rule, without training.", "Training"),
    "generate": _Entry("generate", "generate", "Ask a trained run, an adapter or a base model.", "Training"),
    "export": _Entry("export", "export", "Export a run, an adapter or a model: GGUF, merged, LoRA.", "Shipping"),
    "push": _Entry("push", "push", "Push an adapter, a merged model or a GGUF to the hub.", "Shipping"),
    "chat": _Entry("chat", "chat", "Talk to a trained run, an adapter, a model or a GGUF.", "Shipping"),
    "list-runs": _Entry("runs", "list_runs", "List the runs of an output folder.", "Runs"),
    "show-run": _Entry("runs", "show_run", "Show everything about one run.", "Runs"),
    "diff-runs": _Entry("diff_runs", "diff_runs", "Show in what two runs differ.", "Runs"),
    "replay": _Entry("replay", "replay", "Train an earlier run once more, as a new run.", "Runs"),
    "track": _Entry("track", "track", "Tell a run's trackers what they were not told.", "Runs"),
    "export-runs": _Entry(
        "export_runs", "export_runs", "Write out the history of an output folder, the oldest run first.", "Runs"
    ),
    "validate": _Entry("data", "validate", "Check a data set without training.", "Data"),
    "info": _Entry("system", "info", "Show versions, hardware and presets.", "System"),
    "config": _Entry("system", "config", "Show each setting and where its value comes from.", "System"),
    "doctor": _Entry("doctor", "doctor", "Try out what a training stands on: packages, card, kernels.", "System"),
    "drill": _Entry("drill", "drill", "Put runs of its own through every fault on this machine.", "System"),
    "setup": _Entry("setup", "setup", "Fetch what some exports and trainings need beside the packages.", "System"),
    "completion": _Entry("system", "completion", "Print the completion script of a shell.", "System"),
    "_supervise": _Entry("supervise", "supervise_run", "Supervise a run whose directory exists.", ""),
}


class LazyGroup(click.Group):
    """A group whose commands are known by name and summary, and imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, entry in COMMANDS.items() if entry.section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"backpropagate.commands.{entry.module}"), entry.attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS and name.replace("_", "-") not in COMMANDS:
            raise click.UsageError(f"there is no command {name!r}{did_you_mean(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values() if entry.section):
            with formatter.section(section):
                formatter.write_dl([(n, e.summary) for n, e in COMMANDS.items() if e.section == section])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Every command has --json and --help. Exit codes: 0 done, 1 wrong input, 2 failed, 3 partly done, "
    "69 the GPU needs a reset, 75 stopped resumable or busy, 130 Ctrl-C.",
)
@click.version_option(__version__, "-V", "--version", prog_name="backprop")
def root() -> None:
    """Fine-tune an LLM on one GPU under a crash-proof supervisor.

    backprop train --data my_data.jsonl --model Qwen/Qwen2.5-7B-Instruct --steps 100
    """


def run(arguments: Sequence[str]) -> int:
    """One invocation: returns the exit code; never raises."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character must not end a command
    if environment().get(_COMPLETION, "").startswith("powershell"):
        from backpropagate.commands.powershell import register

        register()
    if not arguments or arguments[0] in ("-h", "--help", "-V", "--version"):
        return _exit_code(root.main(args=list(arguments) or ["--help"], prog_name="backprop", standalone_mode=False))
    return _run_command(list(arguments))


def _run_command(arguments: list[str]) -> int:
    from backpropagate.commands.flags import normalise
    from backpropagate.screen import Screen, as_error

    # Read ahead, since an error of the parser itself has to come in the shape that was asked for.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    screen = Screen(json="--json" in options, verbose=bool({"-v", "--verbose"} & set(options)))
    try:
        return _exit_code(
            root.main(
                arguments, prog_name="backprop", standalone_mode=False, obj=screen, token_normalize_func=normalise
            )
        )
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place where every exception ends
        ours, code = as_error(error)
        screen.error(ours, exit_code=int(code))
        if ours.code == "RUNTIME_INTERNAL" and (screen.verbose or _debug()):
            import traceback

            from backpropagate_protocol.redact import redact

            sys.stderr.write(redact("".join(traceback.format_exception(error))))
        return int(code)


def _debug() -> bool:
    from backpropagate.wishes.settings import Settings

    try:
        return Settings().flag("debug")
    except Exception:  # noqa: BLE001 - the settings themselves may be what is wrong
        return False


def _exit_code(result: object) -> int:
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """The entry point of the `backprop` script and of `python -m backpropagate`."""
    code = run(sys.argv[1:])
    _let_go()
    sys.exit(code)


def _let_go() -> None:
    """What a closed terminal did not take is not tried again at the exit: the interpreter would end with a code of its own."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError, AttributeError):  # gone, closed, or never there
            setattr(sys, name, None)
