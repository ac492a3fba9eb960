"""What there is on this machine to make a model card of: the run that trained, the report of the export, the adapter's own words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from backpropagate import __version__
from backpropagate.judge.plan import trains
from backpropagate.keep import history, runs
from backpropagate.keep.exports import ExportReport, read_report
from backpropagate.keep.record import RunRow
from backpropagate.keep.results import trained_revision
from backpropagate.wishes.campaign_again import campaign
from backpropagate.wishes.model_card import CardFacts, model_card
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.rundir import MANIFEST, OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec

_LONGEST = 1 << 20  # bytes of a README.md that is read for its licence


class _Maker(msgspec.Struct):
    run_id: str = ""


def card_for(repo: str, folder: Path, files: Sequence[str] = (), run: RunDir | None = None) -> str:
    """The card for what is pushed to `repo`: all of `folder`, or of it only `files`.

    run: the run that trained or exported it, where that is known; else it is looked for beside what it made.
    """
    names = list(files) or sorted(path.name for path in folder.iterdir() if path.is_file())
    results = [folder / name for name in files] or [folder, *sorted(folder.glob("*.gguf"))]
    report = next((found for result in results if (found := read_report(result)) is not None), None)
    spec, row = _training(folder, report, run)
    base = spec.model.path if spec else report.base_path if report else ""
    return model_card(
        CardFacts(
            repo=repo,
            files=names,
            spec=spec,
            row=row,
            report=report,
            adapter=_fields(folder / "adapter_config.json"),
            base_card=_text(Path(base) / "README.md") if base else "",
            version=__version__,
            revision=_trained_on(folder, spec, report),
        )
    )


def _trained_on(folder: Path, spec: RunSpec | None, report: ExportReport | None) -> str:
    """The commit of a hub's model: the trained adapter knows it, and so does the report of what was made of it."""
    own = OutputDir(Path(spec.output)).run(spec.run_id).adapter if spec is not None else folder
    return trained_revision(own) or (report.base_revision if report is not None else None) or ""


def _training(folder: Path, report: ExportReport | None, run: RunDir | None) -> tuple[RunSpec | None, RunRow | None]:
    """The run that trained: the named one, the one whose adapter or whole model it exported, or the one that these name."""
    found = _loaded(run)
    adapter = folder if found is None else None
    if found is not None:
        if trains(found):
            assert run is not None
            return found, history.show(run)
        adapter = Path(found.export.adapter or found.model.path) if found.export else None
    if adapter == folder and report is not None:
        adapter = Path(report.adapter or report.base_path)
    maker = _maker(adapter) if adapter is not None else None
    spec = _loaded(maker)
    if maker is None or spec is None or not trains(spec):
        return None, None
    return spec, history.show(maker)


def _loaded(run: RunDir | None) -> RunSpec | None:
    """A campaign with the runs that were appended to it."""
    try:
        spec = None if run is None else runs.load_spec(run)
        if run is None or spec is None or spec.kind != "campaign":
            return spec
        return msgspec.structs.replace(spec, campaign=campaign(run)[1])
    except BackpropagateError:
        return None


def _maker(adapter: Path) -> RunDir | None:
    """The directory of the run that an adapter's manifest names, if it is where runs are."""
    try:
        run_id = msgspec.json.decode((adapter / MANIFEST).read_bytes(), type=_Maker).run_id
    except (OSError, msgspec.DecodeError):
        return None
    if adapter.parent.name == run_id:
        return RunDir(adapter.parent)
    home = OutputDir(adapter.parent)
    return home.run(run_id) if run_id and home.run(run_id).spec.is_file() else None


def _fields(path: Path) -> dict[str, object] | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.DecodeError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size <= _LONGEST else ""
    except (OSError, ValueError):
        return ""
