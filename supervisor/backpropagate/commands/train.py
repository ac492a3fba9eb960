"""`train` and `resume`: the command is the supervisor of its run, unless it detaches."""

from __future__ import annotations

from collections.abc import Callable

import click

from backpropagate.commands.drills import fault_flag
from backpropagate.commands.flags import Command, from_table
from backpropagate.screen import current
from backpropagate.wishes.options import BY_ARGUMENT, Value
from backpropagate_protocol.errors import InvalidSettingError, UserInputError
from backpropagate_protocol.spec import PlannedFault

# Flags of the original whose parts come with a later release: asking for one is an error, refusing one is not.
_LATER_SWITCHES = ("--full-ft-offload",)
_LATER_VALUES = ("--gpu-max-temp",)
TRAINING_KEYS = (
    "data.source", "model.name", "training.preset", "training.max_steps", "training.epochs", "data.max_samples",
    "training.batch_size", "training.gradient_accumulation", "training.learning_rate", "training.scheduler",
    "training.warmup_steps", "training.weight_decay", "training.max_grad_norm", "training.optim", "training.seed",
    "model.max_seq_length", "lora.preset", "lora.r", "lora.alpha", "lora.dropout", "lora.target_modules", "lora.use_dora",
    "lora.use_rslora", "lora.init_lora_weights", "training.method", "training.orpo_beta", "training.simpo_beta",
    "training.simpo_gamma", "training.dpo_beta", "training.kto_beta", "training.kto_desirable_weight",
    "training.kto_undesirable_weight", "training.mode", "training.full_ft_ceiling", "training.fp8", "training.backend",
    "model.load_in_4bit", "model.dtype", "model.revision", "model.trust_remote_code", "training.gradient_checkpointing",
    "training.attention", "training.compile", "training.liger", "training.unsloth", "training.group_by_length",
    "training.logging_steps", "data.format", "data.split", "data.on_bad_row", "data.train_on", "data.packing",
    "data.reasoning_trace", "data.min_trace_tokens", "data.max_trace_tokens", "data.dedup", "data.min_tokens",
    "data.max_tokens", "data.order", "data.eval_split", "training.eval_steps", "training.early_stopping",
    "training.keep_best", "tracking.report_to", "tracking.project",
    "training.output_dir", "training.name", "safety.save_steps", "safety.keep_checkpoints", "safety.grace",
    "safety.oom_recovery", "safety.standby", "safety.wait", "runner.python", "export.after_training", "export.ollama_name",
    "export.directory", "export.ollama_host", "export.llama_cpp_dir",
)  # fmt: skip


def _refused(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value:
        raise InvalidSettingError(f"{param.opts[0]} is not part of this release yet", suggestion="Leave it out.")


def later_flags(function: Callable[..., object]) -> Callable[..., object]:
    for flag in _LATER_SWITCHES:
        function = click.option(flag, is_flag=True, hidden=True, expose_value=False, callback=_refused)(function)
    for flag in _LATER_VALUES:
        function = click.option(flag, hidden=True, expose_value=False, callback=_refused)(function)
    return function


@click.command(cls=Command)
@from_table(*TRAINING_KEYS)
@click.option(
    "--resume",
    "--resume-from-checkpoint",
    "resume_run",
    metavar="RUN",
    help="Go on with this run, as `backprop resume`.",
)
@click.option("--detach", is_flag=True, help="Start the run and return; it goes on without this terminal.")
@fault_flag
@later_flags
def train(resume_run: str | None, detach: bool, faults: tuple[PlannedFault, ...], **given: Value) -> int:
    """Fine-tune a model under supervision."""
    from backpropagate.commands.supervising import begin, go_on
    from backpropagate.keep import history
    from backpropagate.wishes.build_spec import build_spec
    from backpropagate.wishes.notices import notices
    from backpropagate.wishes.settings import Settings
    from backpropagate.wishes.together import check_of_export

    screen = current()
    settings = Settings(given)
    screen.verbose = screen.verbose or settings.flag("debug")
    if resume_run is not None:
        _only_for_resume(given)
        run_dir = history.to_resume(settings.text("training.output_dir"), resume_run)
        return go_on(screen, run_dir, detach, settings.flag("safety.wait"))
    check_of_export(settings, [name for name, value in given.items() if value is not None])
    spec = build_spec(settings, detached=detach, verbose=screen.verbose, faults=faults)
    for notice in notices(settings):
        screen.note(f"note: {notice}")
    return begin(screen, spec, detach)


def _only_for_resume(given: dict[str, Value]) -> None:
    """A resumed run keeps its own wishes; a flag that could not take effect must not be passed over."""
    extra = [name for name, value in given.items() if value is not None and name not in ("output_dir", "wait")]
    if extra:
        flags = ", ".join(BY_ARGUMENT[name].flag for name in extra)
        raise UserInputError(f"a resumed run keeps its settings; {flags} cannot change them", suggestion="Leave the flags out, or start a new run.")  # fmt: skip


@click.command(cls=Command)
@click.argument("run")
@from_table("training.output_dir", "safety.wait")
@click.option("--detach", is_flag=True, help="Start the run and return; it goes on without this terminal.")
def resume(run: str, detach: bool, **given: Value) -> int:
    """Go on with an interrupted or failed run.

    RUN is a run id, any unique prefix of one, or `latest`, the newest that is not complete. Data and settings are those the run began with.
    """
    from backpropagate.commands.supervising import go_on
    from backpropagate.keep import history
    from backpropagate.wishes.settings import Settings

    settings, screen = Settings(given), current()
    screen.verbose = screen.verbose or settings.flag("debug")
    run_dir = history.to_resume(settings.text("training.output_dir"), run)
    return go_on(screen, run_dir, detach, settings.flag("safety.wait"))
