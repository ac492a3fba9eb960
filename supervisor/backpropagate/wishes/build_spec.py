"""Settings → RunSpec, after every check that needs no framework: each wrong wish is an error within a moment.

Nothing is written here. What only the child can know (the rows, the weights, the device) is checked there.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backpropagate.doors.environ import environment
from backpropagate.wishes.export_spec import after_training
from backpropagate.wishes.mlx import check_wishes
from backpropagate.wishes.models import SAMPLE, bundled_sample, last_part, looks_like_path, resolve_model
from backpropagate.wishes.options import Value
from backpropagate.wishes.preferences import check_preferences
from backpropagate.wishes.rows import check_order, check_rows, check_toy
from backpropagate.wishes.safety import safety_spec
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.surroundings import check_backend, check_runner, installed, writable_folder
from backpropagate.wishes.together import check_size, check_together
from backpropagate.wishes.trackers import check_tracker_names, wanted_trackers
from backpropagate.wishes.unsloth import check_unsloth, unsloth_python
from backpropagate_protocol.data_formats import may_be_hub_id
from backpropagate_protocol.errors import (
    DatasetError,
    DatasetNotFoundError,
    InvalidSettingError,
    UserInputError,
)
from backpropagate_protocol.mlx_rules import PACKAGES
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import DataSpec, ExportSpec, LoraSpec, ModelSpec, PlannedFault, RunSpec, TrainSpec

DEFAULT_EFFECTIVE_BATCH = 8
DEFAULT_STEPS = 100
# Less than this cannot hold one checkpoint of the smallest real adapter.
_LEAST_FREE_MIB = 32


def build_spec(settings: Settings, *, detached: bool = False, verbose: bool = False, faults: Sequence[PlannedFault] = ()) -> RunSpec:  # fmt: skip
    """Raises a coded error for the first wish that cannot be served."""
    toy = settings.text("training.backend") == "toy"
    data = _data(settings)
    check_backend(settings.text("training.backend"))
    train = train_spec(settings)
    model = _held(model_spec(settings), train)
    _check(settings, model, data, train)
    runner_python = _runner_python(settings)
    trackers = wanted_trackers(settings, environment())
    output = writable_folder(settings.text("training.output_dir"), least_mib=1 if toy else _LEAST_FREE_MIB)
    run_id = str(uuid.uuid4())
    label = settings.text_or_none("training.name")
    exports = str(OutputDir(Path(output)).exports / run_id[:8])
    export = after_training(settings, name=label or result_name(model, run_id), folder=exports)
    return msgspec.structs.replace(
        _spec(settings, run_id, output, model, data, train, runner_python, export),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        detached=detached,
        name=label,
        verbose=verbose,
        faults=tuple(faults),
        report_to=trackers.names,
        project=settings.text("tracking.project"),
        report_offline=trackers.offline,
    )


def _spec(
    settings: Settings,
    run_id: str,
    output: str,
    model: ModelSpec,
    data: DataSpec,
    train: TrainSpec,
    runner_python: str | None,
    export: ExportSpec | None,
) -> RunSpec:
    """What every run has, be it real or imagined."""
    spec = RunSpec(
        run_id=run_id,
        created="",
        backend=settings.text("training.backend"),
        output=output,
        model=model,
        data=data,
        lora=_lora(settings),
        train=train,
        safety=safety_spec(settings),
        runner_python=runner_python,
        export=export,
    )
    return check_wishes(spec, installed=runner_python is None and all(map(installed, PACKAGES)))


def _check(settings: Settings, model: ModelSpec, data: DataSpec, train: TrainSpec) -> None:
    """What can be told of wishes alone: asked alike before a training and before an estimate of one."""
    settings.check_known()
    check_together(settings)
    if settings.flag_or_none("training.unsloth"):
        check_unsloth(settings)
    check_preferences(settings.text("training.backend"), data, train)
    check_rows(data)
    check_order(data, train)
    check_toy(settings.text("training.backend"), data, train)
    check_size(model, train, environment())
    check_tracker_names(settings)


def hypothetical_spec(settings: Settings) -> RunSpec:
    """What `build_spec` would say, where neither data nor packages nor an output folder need be there; for estimates."""
    source = settings.text_or_none("data.source")
    run_id, train = "estimate", train_spec(settings)
    model = _held(model_spec(settings), train)
    data = _wishes_about_rows(settings, "" if source is None else _data_source(source))
    _check(settings, model, data, train)
    output = os.path.abspath(os.path.expanduser(settings.text("training.output_dir")))
    export = after_training(settings, name=result_name(model, run_id), folder=output)
    return _spec(settings, run_id, output, model, data, train, settings.text_or_none("runner.python"), export)


def _runner_python(settings: Settings) -> str | None:
    """As `check_runner` has it; for Unsloth the interpreter that it lives in."""
    if not settings.flag_or_none("training.unsloth"):
        return check_runner(settings.text_or_none("runner.python"), settings.text("training.backend"))
    return unsloth_python(settings)


def result_name(model: ModelSpec, run_id: str) -> str:
    """What the exports of a run without a label are called: `Qwen2.5-7B-Instruct-1f2e3d4c`."""
    return f"{last_part(model.name)}-{run_id[:8]}"


# --- parts of the spec ----------------------------------------------------------------------------------------------


def model_spec(settings: Settings) -> ModelSpec:
    name = settings.text("model.name")
    toy = settings.text("training.backend") == "toy"
    return ModelSpec(
        name=name,
        path=name if toy else resolve_model(name).path,
        revision=settings.text_or_none("model.revision"),
        trust_remote_code=settings.flag("model.trust_remote_code"),
        load_in_4bit=settings.flag_or_none("model.load_in_4bit"),
        dtype=settings.text("model.dtype"),
    )


def _held(model: ModelSpec, train: TrainSpec) -> ModelSpec:
    """Where 4 bit is out of the question it is so said, for whoever loads the model afterwards, too."""
    if model.load_in_4bit is None and (train.fp8 or train.mode == "full"):
        return msgspec.structs.replace(model, load_in_4bit=False)
    return model


def data_spec(settings: Settings, source: str) -> DataSpec:
    """`source` as the user said it; raises DatasetNotFoundError at once if it can be nothing."""
    return _wishes_about_rows(settings, _data_source(source))


def _wishes_about_rows(settings: Settings, source: str) -> DataSpec:
    return DataSpec(
        source=source,
        split=settings.text("data.split"),
        format=settings.text("data.format"),
        samples=settings.whole_or_none("data.max_samples"),
        on_bad_row=settings.text("data.on_bad_row"),
        max_length=settings.whole("model.max_seq_length"),
        train_on=settings.text("data.train_on"),
        packing=settings.flag_or_none("data.packing"),
        holdout=every_nth(settings.number("data.eval_split")),
        method=settings.text("training.method"),
        reasoning_trace=settings.flag("data.reasoning_trace"),
        trace_tokens=(settings.whole("data.min_trace_tokens"), settings.whole("data.max_trace_tokens")),
        dedup=settings.text("data.dedup"),
        min_tokens=settings.whole("data.min_tokens"),
        max_tokens=settings.whole("data.max_tokens"),
        order=settings.text("data.order"),
    )


def every_nth(share: float) -> int:
    """Every how many-th row is held out for this share of them."""
    return round(1 / share) if share else 0


def _data(settings: Settings) -> DataSpec:
    source = settings.text_or_none("data.source")
    if source is None:
        raise UserInputError(
            "no training data was named",
            suggestion="Name it with --data, for instance: backprop train --data my_data.jsonl --model tiny; `--data sample` are "
            "the five rows that come along.",
        )
    return data_spec(settings, source)


def _data_source(source: str) -> str:
    path = Path(os.path.abspath(os.path.expanduser(source)))
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; name a file in it")
    if path.exists():
        if not os.access(path, os.R_OK):
            raise DatasetError(f"{path} may not be read", suggestion="Change its permissions.")
        if path.is_file() and path.stat().st_size == 0:
            raise DatasetError(f"{path} is empty", suggestion="docs/data.md shows one row of every accepted format.")
        return str(path)
    if source == SAMPLE:
        return str(bundled_sample())
    if may_be_hub_id(source) and not looks_like_path(source):
        return source
    raise DatasetNotFoundError(f"there is no file {path}")


def _lora(settings: Settings) -> LoraSpec:
    rank = settings.whole("lora.r")
    alpha = settings.whole_or_none("lora.alpha")
    targets = settings["lora.target_modules"].value
    assert isinstance(targets, tuple)
    return LoraSpec(
        preset=settings.text("lora.preset"),
        r=rank,
        alpha=2 * rank if alpha is None else alpha,
        dropout=settings.number("lora.dropout"),
        targets=targets,
        use_dora=settings.flag("lora.use_dora"),
        use_rslora=settings.flag("lora.use_rslora"),
        init=settings.text("lora.init_lora_weights"),
    )


def batch_plan(batch_size: int | None, accumulation: int | None, wanted: int) -> tuple[int, int | None]:
    """(effective batch, micro-batch to begin with or None for automatic).

    Both given: their product. One given: the other is chosen so that the effective batch is `wanted` or, where that does
    not divide, a little less. None given: `wanted`.
    """
    if batch_size is None and accumulation is None:
        return wanted, None
    if batch_size is None:
        assert accumulation is not None
        batch_size = max(1, wanted // accumulation)
    elif accumulation is None:
        accumulation = max(1, wanted // batch_size)
    return batch_size * accumulation, batch_size


def decided(settings: Settings) -> dict[str, Value]:
    """By key: the values that a new run takes where nothing was said, as far as they follow from the other settings."""
    values: dict[str, Value] = {}
    if settings["training.max_steps"].value is None and settings["training.epochs"].value is None:
        values["training.max_steps"] = DEFAULT_STEPS
    if settings["lora.alpha"].value is None:
        values["lora.alpha"] = 2 * settings.whole("lora.r")
    effective, batch = _batch(settings)
    if batch is not None:
        values |= {"training.batch_size": batch, "training.gradient_accumulation": effective // batch}
    if settings["runner.python"].value is None:
        values["runner.python"] = sys.executable
    return values


def effective_batch(settings: Settings) -> int:
    """Samples in one optimizer step."""
    return _batch(settings)[0]


def _batch(settings: Settings) -> tuple[int, int | None]:
    preset = settings.training_preset()
    return batch_plan(
        settings.whole_or_none("training.batch_size"),
        settings.whole_or_none("training.gradient_accumulation"),
        preset.effective_batch if preset else DEFAULT_EFFECTIVE_BATCH,
    )


def train_spec(settings: Settings) -> TrainSpec:
    steps, epochs = settings["training.max_steps"], settings["training.epochs"]
    count: int | None = None
    if steps.value is not None and epochs.value is not None and steps.rank == epochs.rank:
        raise InvalidSettingError("both a number of steps and a number of epochs were given", suggestion="Give --steps or --epochs, not both.")  # fmt: skip
    if epochs.value is None or (steps.value is not None and steps.rank < epochs.rank):
        count = DEFAULT_STEPS if steps.value is None else settings.whole("training.max_steps")
    effective, batch = _batch(settings)
    method = settings.text("training.method")
    return TrainSpec(
        method=method,
        mode=settings.text("training.mode"),
        steps=count,
        epochs=settings.number("training.epochs") if count is None else None,
        effective_batch=effective,
        batch_size=batch,
        learning_rate=settings.number("training.learning_rate"),
        scheduler=settings.text("training.scheduler"),
        warmup_steps=_warmup(settings, count),
        weight_decay=settings.number("training.weight_decay"),
        max_grad_norm=settings.number("training.max_grad_norm"),
        optim=settings.text("training.optim"),
        seed=settings.whole("training.seed"),
        gradient_checkpointing=settings.flag_or_none("training.gradient_checkpointing"),
        logging_steps=settings.whole("training.logging_steps"),
        beta=_beta(settings),
        gamma=settings.number("training.simpo_gamma") if method == "simpo" else None,
        desirable_weight=settings.number("training.kto_desirable_weight"),
        undesirable_weight=settings.number("training.kto_undesirable_weight"),
        fp8=settings.flag("training.fp8"),
        attention=settings.text("training.attention"),
        compile=settings.flag("training.compile"),
        liger=settings.flag_or_none("training.liger"),
        unsloth=settings.flag_or_none("training.unsloth"),
        group_by_length=settings.flag("training.group_by_length"),
        eval_steps=settings.whole_or_none("training.eval_steps"),
        early_stopping=settings.whole("training.early_stopping"),
        keep_best=settings.flag("training.keep_best"),
        ceiling=settings.number("training.full_ft_ceiling"),
    )


def _warmup(settings: Settings, steps: int | None) -> int:
    """One that nobody asked for leaves the learning rate time to reach its peak: at most a tenth of a very short training."""
    wanted = settings.whole("training.warmup_steps")
    if steps is None or wanted < steps or settings["training.warmup_steps"].explicit:
        return wanted
    return steps // 10


def _beta(settings: Settings) -> float | None:
    method = settings.text("training.method")
    return None if method == "sft" else settings.number(f"training.{method}_beta")
