"""An export or an upload as a run of its own: what RUN|PATH means and what is wished → RunSpec, every cheap check done."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from backpropagate.keep.runs import as_output
from backpropagate.wishes.export_spec import ExportWish, export_spec
from backpropagate.wishes.safety import safety_spec
from backpropagate.wishes.settings import Settings
from backpropagate.wishes.sources import Source, find, named_as_model
from backpropagate.wishes.surroundings import check_backend, check_runner, writable_folder
from backpropagate_protocol.errors import RunNotFoundError, UserInputError
from backpropagate_protocol.spec import DataSpec, ExportSpec, ModelSpec, PlannedFault, PushSpec, RunSpec

# A reference is what the trained model says, and to hear that it has to be loaded.
_LOADING = ("torch", "transformers", "peft")


def export_run(
    settings: Settings,
    what: str,
    wish: ExportWish,
    *,
    base: str | None = None,
    detached: bool = False,
    verbose: bool = False,
    faults: Sequence[PlannedFault] = (),
) -> RunSpec:
    """Raises a coded error for the first wish that cannot be served; writes nothing."""
    source = _found(settings, what, base)
    if source.trained is None and source.run is None and not named_as_model(what):
        raise UserInputError(
            f"{what} is no run, no folder of an adapter and no model",
            code="INPUT_MODEL_NOT_FOUND",
            suggestion="`backprop list-runs` shows the runs; --runs FOLDER says where to look for them.",
        )
    check_backend(source.backend)
    output = writable_folder(source.output, least_mib=1, flag="--runs")
    inputs = [place for place in (source.adapter, source.model.path) if place is not None]
    spec = export_spec(
        settings,
        wish,
        name=source.name,
        folder=str(as_output(output).exports / source.folder),
        adapter=source.adapter,
        base_alone=source.trained is None,
        whole=source.base is not None,
        inputs=inputs,
    )
    loads = spec.format != "lora" and source.backend != "toy"
    python = check_runner(source.runner_python, source.backend, what="this export", needs=_LOADING if loads else ())
    return run_spec(
        settings,
        source,
        output,
        runner_python=python,
        export=spec,
        detached=detached,
        verbose=verbose,
        faults=faults,
    )


def _found(settings: Settings, what: str, base: str | None = None) -> Source:
    """As `find`; the folder in which runs are looked up has a flag of its own here, since --output is the result's."""
    try:
        return find(what, settings, base)
    except RunNotFoundError as error:
        advice = error.suggestion.replace("--output FOLDER", "--runs FOLDER")
        raise RunNotFoundError(error.message, code=error.code, suggestion=advice, run_id=error.run_id) from None


def run_spec(
    settings: Settings,
    source: Source | None,
    output: str,
    *,
    runner_python: str | None,
    export: ExportSpec | None = None,
    push: PushSpec | None = None,
    detached: bool = False,
    verbose: bool = False,
    faults: Sequence[PlannedFault] = (),
) -> RunSpec:
    """Either `export` or `push` is given. What there is no source of stays empty."""
    made = push.folder if push is not None else ""
    return RunSpec(
        run_id=str(uuid.uuid4()),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        backend=source.backend if source else "auto",
        output=output,
        model=source.model if source else ModelSpec(name=Path(made).name, path=made),
        data=(source.data if source else None) or DataSpec(source=""),
        safety=safety_spec(settings),
        runner_python=runner_python,
        detached=detached,
        verbose=verbose,
        faults=tuple(faults),
        kind="export" if export is not None else "push",
        export=export,
        push=push,
    )
