"""What `RUN|PATH|MODEL` means, in every command that takes one: a run first, then the folder of an adapter, then a model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from backpropagate.judge.plan import full, trains
from backpropagate.keep import exports, history, results, runs
from backpropagate.wishes.build_spec import model_spec
from backpropagate.wishes.models import TINY, adapter_base, last_part
from backpropagate.wishes.presets import MODELS
from backpropagate.wishes.settings import Settings
from backpropagate_protocol import weights
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode, Retry
from backpropagate_protocol.errors import RunNotFoundError, UserInputError
from backpropagate_protocol.rundir import MANIFEST, OutputDir, RunDir
from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec

_GENERIC = ("lora", "adapter")  # folder names that say nothing about what is in them
_PERHAPS_A_RUN = re.compile(r"[0-9a-f][0-9a-f-]{3,35}|latest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that is to be asked, exported or pushed, and how it is held unless the command line says otherwise.

    adapter     absolute folder, or None for the model as it is
    base        what a full fine-tune began from: `model` is then the result itself; None for everything else
    name        what is made of it is called so; folder: the same for a folder in `exports`
    output      the output folder it belongs to, or else the one of the settings
    run         the run that trained it; data: what it was trained on
    exported    the file or folder that the named run made of it, if that is still there
    """

    model: ModelSpec
    adapter: str | None
    backend: str
    runner_python: str | None
    name: str
    folder: str
    output: str
    run: RunDir | None = None
    data: DataSpec | None = None
    exported: Path | None = None
    base: ModelSpec | None = None

    @property
    def trained(self) -> str | None:
        """The folder of what was trained: an adapter, or a whole model."""
        return self.adapter if self.base is None else self.model.path

    def subject(self, base: bool) -> tuple[ModelSpec, str | None]:
        """The model to ask, and the adapter on it. base: without what was trained."""
        return (self.base or self.model, None) if base else (self.model, self.adapter)


def find(what: str, settings: Settings, base: str | None = None) -> Source:
    """Raises the coded error of what is nothing, or not finished. base: the model to take instead of the one it names."""
    named(what)
    try:
        run_dir = run_that_trained(settings.text("training.output_dir"), what)
    except RunNotFoundError as error:
        folder = Path(os.path.abspath(os.path.expanduser(what)))
        if error.code == "INPUT_RUN_AMBIGUOUS" or (_PERHAPS_A_RUN.fullmatch(what) and not folder.exists()):
            raise
    else:
        return _of_run(run_dir, settings, base)
    for place in (folder, folder.parent):  # a run's own directory, and the adapter in it
        if place.parent.name == "runs" and RunDir(place).spec.is_file() and folder in (place, RunDir(place).adapter):
            return _of_run(RunDir(place), settings, base)
    for adapter in (folder, folder / "lora", folder / "adapter"):
        if (adapter / "adapter_config.json").is_file():
            return _of_adapter(adapter, settings, base)
    model = model_spec(_for(settings, base or what))
    return Source(
        model=model,
        adapter=None,
        backend=settings.text("training.backend"),
        runner_python=settings.text_or_none("runner.python"),
        name=last_part(model.name),
        folder=last_part(model.name),
        output=settings.text("training.output_dir"),
    )


def named(what: str) -> None:
    """Raises UserInputError for an empty name, which as a path would be the current folder."""
    if not what.strip():
        raise UserInputError("no run, folder or model was named", suggestion="`backprop list-runs` shows the runs.")


def named_as_model(what: str) -> bool:
    """Said so that only a model can be meant: a hub id with its owner, a preset, `tiny`, or a folder that is there."""
    return "/" in what or what == TINY or what.lower() in MODELS or Path(os.path.expanduser(what)).is_dir()


def run_that_trained(output: str, what: str) -> RunDir:
    """`latest` is the newest training or campaign: what was made of it since does not hide it, nor do a campaign's runs."""
    if what == "latest":
        folder = runs.as_output(output)
        made_ids = runs.run_ids(folder)
        made = [folder.run(run_id) for run_id in made_ids]
        for run_dir in sorted(made, key=lambda run: run.spec.stat().st_mtime_ns, reverse=True):
            spec = runs.load_spec(run_dir)
            if trains(spec):
                return folder.run(spec.parent) if spec.parent in made_ids else run_dir
    return runs.find(output, what)


def _in_vain(run_dir: RunDir) -> bool:
    """It has no result, and will never have one."""
    if run_dir.adapter.is_dir():
        return False
    row = history.row_of(run_dir)
    return row.exit_code == ExitCode.USER_ERROR and row.code in CATALOGUE and CATALOGUE[row.code].retry is Retry.NEVER


def _of_run(run_dir: RunDir, settings: Settings, base: str | None) -> Source:
    spec = runs.load_spec(run_dir)
    adapter = _trained(run_dir, spec)
    if full(spec) and base is not None:
        raise UserInputError(
            f"run {run_dir.run_id} trained a whole model, which needs no base", suggestion="Leave --base out."
        )
    model = model_spec(_for(settings, base)) if base is not None else _with_wishes(spec.model, settings, adapter)
    began: ModelSpec | None = None
    if full(spec) and adapter is not None:
        # Held as it was trained: in 4 bit it would be another model.
        four_bit = model.load_in_4bit if settings["model.load_in_4bit"].explicit else False
        began = model
        model = msgspec.structs.replace(model, path=adapter, revision=None, load_in_4bit=four_bit)
        adapter = None
    chosen_backend, chosen_python = settings["training.backend"], settings["runner.python"]
    short = run_dir.run_id[:8]
    return Source(
        model=model,
        adapter=adapter,
        backend=settings.text("training.backend") if chosen_backend.explicit else spec.backend,
        runner_python=settings.text_or_none("runner.python") if chosen_python.explicit else spec.runner_python,
        name=(spec.export.name if spec.export else None) or spec.name or f"{last_part(spec.model.name)}-{short}",
        folder=short,
        output=str(run_dir.output.path),
        run=run_dir,
        data=spec.data,
        exported=_exported(run_dir),
        base=began,
    )


def _trained(run_dir: RunDir, spec: RunSpec) -> str | None:
    """The adapter (or the whole model) that the run trained, or the adapter that it exported."""
    if spec.kind == "push":
        raise UserInputError(
            f"run {run_dir.run_id} was an upload",
            suggestion="Name the run that trained, or a folder.",
            run_id=run_dir.run_id,
        )
    if trains(spec):
        if not run_dir.adapter.is_dir():
            raise UserInputError(
                f"run {run_dir.run_id} has no finished {'model' if full(spec) else 'adapter'}",
                suggestion=f"Begin a new run, since this one would fail again{_or_another(run_dir)}."
                if _in_vain(run_dir)
                else f"Finish it: {runs.resuming(run_dir)}",
                run_id=run_dir.run_id,
            )
        return str(run_dir.adapter)
    adapter = spec.export.adapter if spec.export else None
    if adapter is not None and not Path(adapter).is_dir():
        raise UserInputError(
            f"the adapter that run {run_dir.run_id} exported is not there any more: {adapter}", run_id=run_dir.run_id
        )
    return adapter


def _or_another(run_dir: RunDir) -> str:
    """What may have been meant instead. Never taken unasked: it is another model."""
    others = [run_dir.output.run(run_id) for run_id in runs.run_ids(run_dir.output)]
    others = [other for other in others if other.adapter.is_dir() and trains(runs.load_spec(other))]
    newest = max(others, key=lambda other: other.spec.stat().st_mtime_ns, default=None)
    return "" if newest is None else f", or name the newest that has a result: {newest.run_id}"


def _exported(run_dir: RunDir) -> Path | None:
    """What the run says that it exported, if that is what stands there: another run may have taken the name since."""
    for path in reversed(history.row_of(run_dir).export_paths):
        if exports.standing(run_dir.run_id, Path(path)) is not None:
            return Path(path)
    return None


def _newest_of(home: OutputDir) -> RunDir | None:
    """The run whose adapter is this output folder's `lora`, which is a copy and gives way to the next run's."""
    made = [home.run(run_id) for run_id in runs.run_ids(home)]
    made = [run for run in made if (run.adapter / MANIFEST).is_file()]
    try:
        wanted = weights.digest_in(home.lora) if made else ""
        made.sort(key=lambda run: run.adapter.stat().st_mtime_ns, reverse=True)
        return next((run for run in made if wanted and weights.digest_in(run.adapter) == wanted), None)
    except OSError:
        return None


def _of_adapter(adapter: Path, settings: Settings, base: str | None) -> Source:
    home = OutputDir(adapter.parent)
    maker = _newest_of(home) if adapter == home.lora else None
    if maker is not None:
        made = _of_run(maker, settings, base)
        name = f"{last_part(made.model.name)}-{adapter.name}"
        output = made.output if not settings["training.output_dir"].explicit else settings.text("training.output_dir")
        return replace(made, name=name, folder=home.path.name, output=output, exported=None)
    try:
        model = model_spec(_for(settings, base or adapter_base(adapter)))
    except UserInputError as error:
        if error.code != "INPUT_MODEL_NOT_FOUND":
            raise
        raise UserInputError(
            f"the base model of {adapter}: {error.message}", code=error.code, suggestion="Name it with --base MODEL."
        ) from error
    generic = adapter.name in _GENERIC
    at_home = adapter == home.lora and home.runs.is_dir()
    return Source(
        model=model,
        adapter=str(adapter),
        backend=settings.text("training.backend"),
        runner_python=settings.text_or_none("runner.python"),
        name=f"{last_part(model.name)}-{adapter.name}" if generic else adapter.name,
        folder=adapter.parent.name if generic else adapter.name,
        output=str(home.path)
        if at_home and not settings["training.output_dir"].explicit
        else settings.text("training.output_dir"),
    )


def _with_wishes(model: ModelSpec, settings: Settings, adapter: str | None) -> ModelSpec:
    """The run's model at the commit that the adapter was trained on, held as the command line says if it says so."""
    trained = results.trained_revision(Path(adapter)) if adapter is not None else ""
    if trained:
        model = msgspec.structs.replace(model, revision=trained)
    if settings["model.load_in_4bit"].explicit:
        model = msgspec.structs.replace(model, load_in_4bit=settings.flag_or_none("model.load_in_4bit"))
    if settings["model.trust_remote_code"].explicit:
        model = msgspec.structs.replace(model, trust_remote_code=settings.flag("model.trust_remote_code"))
    if settings["model.revision"].explicit:
        model = msgspec.structs.replace(model, revision=settings.text_or_none("model.revision"))
    return model


def _for(settings: Settings, model: str) -> Settings:
    """The same wishes for another model."""
    kept = ("model.load_in_4bit", "model.trust_remote_code", "training.backend")
    wishes = {settings[key].option.argument: settings[key].value for key in kept}
    if settings["model.revision"].given:  # one from a file was meant for the model of that file
        wishes["revision"] = settings["model.revision"].value
    return Settings({"model": model, **wishes})
