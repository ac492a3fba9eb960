"""The plot stage: a campaign's scores as pictures. The same report gives the same SVG, byte for byte.

Above, what the merged adapter scored after each run on each task (accuracy, then loss), every cell with its number; below, how
the averages went: the merged adapter, the newest run's own, the base, and each task as a thin line of its own.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from backpropagate_protocol.campaign_report import BASE, MERGED, NEWEST, CampaignReport
from backpropagate_protocol.errors import BackpropagateError, DependencyError
from backpropagate_protocol.jobs import PlotJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export.digests import digest_of, folder_digest
from backpropagate_runner.export.stage import Stage, new_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NO_DATE: dict[str, dict[str, str | None]] = {".svg": {"Date": None}, ".png": {"Software": None}}
_NUMBERED = 20  # more runs than that, and the numbers in the cells would run into each other
_NAME = 18  # characters of a task's name


class _Kind(NamedTuple):
    """accuracy or loss: how it is called, read and shown."""

    field: str
    title: str
    colours: str
    scale: float
    form: str


_KINDS = (
    _Kind("accuracy", "accuracy, % of tokens", "viridis", 100.0, "{:.1f}"),
    _Kind("loss", "loss, nats per token", "viridis_r", 1.0, "{:.2f}"),  # the better, the brighter, as with accuracy
)


def plot(job: PlotJob, stage: Stage) -> Made:
    """Draws the report to every file of `out`; the digest is that of the file, or over all of them.

    Raises DependencyError (DEP_PLOT_TOOL_MISSING) without matplotlib, and BackpropagateError for a report that cannot be read.
    """
    report = _read(Path(job.report))
    outs = [Path(out) for out in job.out]
    stage.advance(0, len(outs), "drawing")
    try:
        import matplotlib
    except ImportError as error:
        raise DependencyError(
            "the pictures of a campaign need matplotlib, which is not installed where the training runs",
            code="DEP_PLOT_TOOL_MISSING",
        ) from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name in letters that the font has not is still a name
        matplotlib.rcdefaults()  # not the user's own style: the picture is the same everywhere
        matplotlib.rcParams["svg.hashsalt"] = "backpropagate"  # the ids in the file would be random
        matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
        matplotlib.rcParams["text.parse_math"] = False  # a task may be called $x$
        matplotlib.rcParams["font.size"] = 9.0
        for number, out in enumerate(outs, 1):
            _save(_figure(report), out)
            stage.advance(number, len(outs), out.name)
    digests = {out.name: digest_of(out) for out in outs}
    digest = digests[outs[0].name] if len(outs) == 1 else folder_digest(digests)
    return Made(path=str(outs[0]), bytes=sum(out.stat().st_size for out in outs), digest=digest)


def _read(path: Path) -> CampaignReport:
    try:
        report = msgspec.json.decode(path.read_bytes(), type=CampaignReport)
    except (OSError, msgspec.DecodeError) as error:
        raise BackpropagateError(f"the campaign's report {path} cannot be read: {error}") from error
    if not report.scored_runs:
        raise BackpropagateError(f"the campaign's report {path} has no scores to draw")
    return report


def _save(figure: Figure, out: Path) -> None:
    suffix = out.suffix.lower()
    if suffix not in _NO_DATE:
        raise BackpropagateError(f"{out.name} ends neither in .svg nor in .png")
    with new_file(out) as partial:
        figure.savefig(partial, format=suffix[1:], metadata=_NO_DATE[suffix], dpi=110)


def _figure(report: CampaignReport) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = max(len(report.scored_runs), len(report.held_out))
    side = min(16.0, max(4.6, 1.8 + 0.42 * size))
    figure = Figure(figsize=(2 * side, side + 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen
    axes = figure.subplots(2, 2, height_ratios=[side, 3.2], squeeze=False)
    for column, kind in enumerate(_KINDS):
        _heat(figure, axes[0][column], report, kind)
        _curves(axes[1][column], report, kind)
    figure.suptitle(_title(report))
    return figure


def _title(report: CampaignReport) -> str:
    at = report.totals[-1] if report.totals else None
    parts = [f"campaign {report.run_id[:8]}", f"merged by {report.rule}" if report.rule else ""]
    if at is not None and at.average_accuracy is not None:
        parts.append(f"average accuracy {100 * at.average_accuracy:.1f} %")
    if at is not None and at.backward_transfer is not None:
        parts.append(f"backward transfer {100 * at.backward_transfer:+.1f} points")
    return ", ".join(part for part in parts if part)


def _value(report: CampaignReport, candidate: str, run: int, task: int, kind: _Kind) -> float:
    cell = report.cell(candidate, run, task)
    if cell is None:
        return math.nan
    return kind.scale * (cell.accuracy if kind.field == "accuracy" else cell.loss)


def _heat(figure: Figure, axes: Axes, report: CampaignReport, kind: _Kind) -> None:
    """Rows are runs, columns are tasks; what no run was taught yet stays white."""
    runs, tasks = report.scored_runs, report.held_out
    grid = [[_value(report, MERGED, run, task, kind) for task in tasks] for run in runs]
    image = axes.pcolormesh(grid, cmap=kind.colours, edgecolors="white", linewidth=1.0)
    figure.colorbar(image, ax=axes)
    axes.set_title(kind.title)
    axes.invert_yaxis()
    axes.set_xticks(
        [x + 0.5 for x in range(len(tasks))], [_name(report, task) for task in tasks], rotation=35, ha="right"
    )
    axes.set_yticks([y + 0.5 for y in range(len(runs))], [f"after run {run}" for run in runs])
    if max(len(runs), len(tasks)) > _NUMBERED:
        return
    low, high = image.get_clim()
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            if not math.isnan(value):
                bright = (value - low) / (high - low) if high > low else 1.0
                light = bright > 0.5 if kind.colours == "viridis" else bright < 0.5
                ink = "black" if light else "white"
                axes.text(x + 0.5, y + 0.5, kind.form.format(value), ha="center", va="center", color=ink)


def _curves(axes: Axes, report: CampaignReport, kind: _Kind) -> None:
    """Over the runs: each task, and the averages over the tasks that were taught by then."""
    runs = list(report.scored_runs)
    for task in report.held_out:
        axes.plot(runs, [_value(report, MERGED, run, task, kind) for run in runs], color="0.75", linewidth=0.9)
    for candidate, style, colour, label in (
        (MERGED, "-", "tab:blue", "merged, average"),
        (NEWEST, "--", "tab:orange", "newest run's own, average"),
        (BASE, ":", "tab:gray", "base, average"),
    ):
        line = [_average(report, candidate, run, kind) for run in runs]
        if not all(map(math.isnan, line)):
            axes.plot(runs, line, style, color=colour, marker="o", markersize=3.5, label=label)
    axes.set_xlabel("run")
    axes.set_ylabel(kind.title)
    axes.set_xticks(runs if len(runs) <= _NUMBERED else runs[:: math.ceil(len(runs) / _NUMBERED)])
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")


def _average(report: CampaignReport, candidate: str, run: int, kind: _Kind) -> float:
    values = [_value(report, candidate, run, task, kind) for task in report.held_out if task < run]
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _name(report: CampaignReport, task: int) -> str:
    name = "".join(c if c.isprintable() else " " for c in report.tasks[task]) if task < len(report.tasks) else ""
    return f"{task + 1} {name if len(name) <= _NAME else name[: _NAME - 1] + '…'}".strip()
