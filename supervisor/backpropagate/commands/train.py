"""`train` and `resume`: the command is the supervisor of its run, unless it detaches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import Screen, current
from backpropagate.wishes.options import BY_ARGUMENT, Value
from backpropagate_protocol.errors import CATALOGUE, BackpropagateError, InvalidSettingError, UserInputError, error_for
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import PlannedFault

if TYPE_CHECKING:
    from backpropagate.watch.sinks import Sink

_DETACH_PATIENCE = 20.0  # seconds until a detached supervisor must have said that it began

# Flags of the original whose parts come with a later release: asking for one is an error, refusing one is not.
_LATER_SWITCHES = ("--fp8", "--reasoning-trace", "--full-ft-offload")
_LATER_VALUES = ("--orpo-beta", "--simpo-beta", "--simpo-gamma", "--kto-beta", "--gpu-max-temp")
_TRAIN_KEYS = (
    "data.source", "model.name", "training.preset", "training.max_steps", "training.epochs", "data.max_samples",
    "training.batch_size", "training.gradient_accumulation", "training.learning_rate", "training.scheduler",
    "training.warmup_steps", "training.weight_decay", "training.max_grad_norm", "training.optim", "training.seed",
    "model.max_seq_length", "lora.preset", "lora.r", "lora.alpha", "lora.dropout", "lora.target_modules", "lora.use_dora",
    "lora.use_rslora", "lora.init_lora_weights", "training.method", "training.mode", "training.backend",
    "model.load_in_4bit", "model.dtype", "model.revision", "model.trust_remote_code", "training.gradient_checkpointing",
    "training.logging_steps", "data.format", "data.split", "data.on_bad_row", "data.train_on", "data.packing",
    "training.output_dir", "training.name", "safety.save_steps", "safety.keep_checkpoints", "safety.grace",
    "safety.oom_recovery", "safety.wait", "runner.python",
)  # fmt: skip


def _refused(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value:
        raise InvalidSettingError(f"{param.opts[0]} is not part of this release yet", suggestion="Leave it out.")


def _later_flags(function: Callable[..., object]) -> Callable[..., object]:
    for flag in _LATER_SWITCHES:
        function = click.option(flag, is_flag=True, hidden=True, expose_value=False, callback=_refused)(function)
    for flag in _LATER_VALUES:
        function = click.option(flag, hidden=True, expose_value=False, callback=_refused)(function)
    # What is said here is how this release works anyway.
    return click.option("--no-unsloth", is_flag=True, hidden=True, expose_value=False)(function)


def _report_to(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value not in (None, "none", "auto"):
        raise InvalidSettingError(
            f"--report-to {value} is not part of this release yet", suggestion="Use --report-to none."
        )


def _planned(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[PlannedFault, ...]:
    """`KIND@STEP` or `KIND@STEP:ATTEMPT`."""
    found = []
    for text in values:
        kind, _, place = text.partition("@")
        step, _, attempt = place.partition(":")
        if not (kind and step.isdigit() and (attempt or "1").isdigit()):
            raise UserInputError(f"--fault {text}: it reads KIND@STEP or KIND@STEP:ATTEMPT, such as oom@5")
        found.append(PlannedFault(kind, int(step), int(attempt or "1")))
    return tuple(found)


@click.command(cls=Command)
@from_table(*_TRAIN_KEYS)
@click.option(
    "--resume",
    "--resume-from-checkpoint",
    "resume_run",
    metavar="RUN",
    help="Go on with this run, as `backprop resume`.",
)
@click.option("--detach", is_flag=True, help="Start the run and return; it goes on without this terminal.")
@click.option("--report-to", hidden=True, expose_value=False, callback=_report_to)
@click.option("--fault", "faults", multiple=True, hidden=True, callback=_planned)
@_later_flags
def train(resume_run: str | None, detach: bool, faults: tuple[PlannedFault, ...], **given: Value) -> int:
    """Fine-tune a model under supervision."""
    from backpropagate.keep import runs
    from backpropagate.wishes.build_spec import build_spec, notices
    from backpropagate.wishes.settings import Settings

    screen = current()
    settings = Settings(given)
    screen.verbose = screen.verbose or settings.flag("debug")
    if resume_run is not None:
        _only_for_resume(given)
        run_dir = runs.find(settings.text("training.output_dir"), resume_run)
        return _resume(screen, run_dir, detach, settings.flag("safety.wait"))
    spec = build_spec(settings, detached=detach, verbose=screen.verbose, faults=faults)
    for notice in notices(settings):
        screen.note(f"note: {notice}")
    run_dir = runs.create(spec)
    with runs.beginning(run_dir):
        return _supervised(screen, run_dir, detach, resumed=False, wait=spec.safety.wait_for_lock)


def _only_for_resume(given: dict[str, Value]) -> None:
    """A resumed run keeps its own wishes; a flag that could not take effect must not be passed over."""
    extra = [name for name, value in given.items() if value is not None and name not in ("output_dir", "wait")]
    if extra:
        flags = ", ".join(BY_ARGUMENT[name].flags[-1].split("/")[0] for name in extra)
        raise UserInputError(f"a resumed run keeps its settings; {flags} cannot change them", suggestion="Leave the flags out, or start a new run.")  # fmt: skip


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir", "safety.wait")
@click.option("--detach", is_flag=True, help="Start the run and return; it goes on without this terminal.")
def resume(run: str, detach: bool, **given: Value) -> int:
    """Go on with an interrupted or failed run.

    RUN is a run id, any unique prefix of one, or `latest`. Data and settings are those the run began with.
    """
    from backpropagate.keep import runs
    from backpropagate.wishes.settings import Settings

    settings, screen = Settings(given), current()
    screen.verbose = screen.verbose or settings.flag("debug")
    run_dir = runs.find(settings.text("training.output_dir"), run)
    return _resume(screen, run_dir, detach, settings.flag("safety.wait"))


def _resume(screen: Screen, run_dir: RunDir, detach: bool, wait: bool) -> int:
    from backpropagate.keep import history

    if history.show(run_dir).status == "completed":
        raise error_for("STATE_RUN_FINISHED", "the run is complete", run_id=run_dir.run_id)
    return _supervised(screen, run_dir, detach, resumed=run_dir.events.exists(), wait=wait)


def _supervised(screen: Screen, run_dir: RunDir, detach: bool, *, resumed: bool, wait: bool) -> int:
    return _detached(screen, run_dir, wait) if detach else _in_foreground(screen, run_dir, resumed, wait)


def _in_foreground(screen: Screen, run_dir: RunDir, resumed: bool, wait: bool) -> int:
    import msgspec

    from backpropagate.keep import runs
    from backpropagate.result import Summary
    from backpropagate.waiting import supervise_when_free
    from backpropagate.watch.console import sink_for
    from backpropagate.wishes.environ import environment

    summary = Summary(run_dir)
    sinks: list[Sink] = [summary]
    if not screen.json:
        sinks.append(sink_for(sys.stderr, environment(), verbose=screen.verbose))
    try:
        outcome = supervise_when_free(run_dir, sinks, screen.note, resumed=resumed, wait=wait)
    finally:
        for sink in sinks:
            sink.close()
    advice = outcome.suggestion or (CATALOGUE[outcome.code].remedy if outcome.code else "")
    outcome = msgspec.structs.replace(outcome, suggestion=advice.replace("backprop resume RUN", runs.resuming(run_dir)))
    recovered = {"recovered": summary.view.recoveries, "run_dir": str(run_dir.path)}
    document = {**msgspec.to_builtins(outcome), **recovered}
    if outcome.exit_code == 0:
        loss = "" if outcome.final_loss is None else f"\nloss     {outcome.final_loss:.4f}"
        again = f"\nfaults   recovered from {outcome.recoveries}" if outcome.recoveries else ""
        screen.data(
            document,
            f"run      {outcome.run_id}\nstatus   {outcome.status}\nsteps    {outcome.step}/{outcome.total_steps}"
            f"{loss}{again}\nadapter  {outcome.adapter}",
        )
    else:
        code = outcome.code or "RUNTIME_TRAINING_FAILED"
        message = outcome.message or f"the run is {outcome.status}"
        error = error_for(code, message, suggestion=outcome.suggestion or None, run_id=outcome.run_id)
        screen.error(error, document, outcome.exit_code)
    return outcome.exit_code


def _detached(screen: Screen, run_dir: RunDir, wait: bool) -> int:
    from backpropagate.keep.journal import Follower
    from backpropagate.launch import start

    follower = Follower(run_dir.events, from_end=True)
    supervisor = start(run_dir, owned=False, wait=wait)
    deadline = time.monotonic() + _DETACH_PATIENCE
    while not follower.poll() and not wait:  # one that waits for another run says nothing until that is over
        if supervisor.exit_code is not None and not follower.poll():
            raise supervisor.last_words()
        if time.monotonic() > deadline:
            supervisor.end()  # or it might begin in a directory that is being discarded
            raise BackpropagateError(
                "the detached supervisor did not begin",
                suggestion=f"Look into {run_dir.supervisor_log}.",
                run_id=run_dir.run_id,
            )
        time.sleep(0.02)
    document = {"run_id": run_dir.run_id, "run_dir": str(run_dir.path), "pid": supervisor.process.pid, "detached": True}
    screen.data(document, run_dir.run_id)
    screen.note(f"It runs in the background (process {supervisor.process.pid}). Its log: {run_dir.supervisor_log}")
    return 0
