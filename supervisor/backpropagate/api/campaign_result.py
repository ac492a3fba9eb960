"""Campaign: what a finished (or interrupted) multi-run gives back, made from its events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from backpropagate import events
from backpropagate.api.export_result import Export, ExportSummary
from backpropagate.events import Event
from backpropagate.judge.campaign import Facts
from backpropagate.keep import campaign_adapter, campaign_report
from backpropagate.keep.runs import load_spec
from backpropagate.keep.supervised import Supervised
from backpropagate.watch.view import RunView
from backpropagate_protocol.campaign_report import MERGED, CampaignReport, RunPart, Totals
from backpropagate_protocol.rundir import RunDir

PLOTS = ("svg", "png")
Matrix = list[list[float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignRun:
    """One run of a campaign, trained and merged.

    number        from 1; name: of its task; run_id: its own, for `backprop show-run`
    adapter_path  as it was fine-tuned, before any merge
    rule          it was merged by; coefficient: of this run in that merge; weight: what is left of it in the newest one
    accuracy      of what was merged, on the held-out rows of all tasks so far, on average; None: not scored. loss: the same
    """

    number: int
    name: str
    run_id: str
    steps: int
    final_loss: float | None
    adapter_path: Path
    rule: str
    coefficient: float | None
    weight: float | None
    accuracy: float | None
    loss: float | None
    recovery_count: int
    duration_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """One campaign as it ended.

    run_id        its id; status: `completed`, `interrupted` (resumable), or `partial`
    runs          those that are trained and merged, in order; total_runs: those that were asked for
    adapter_path  the merged adapter in PEFT layout, or None; it is in <output>/lora, too
    merged        the rule by which it was made; tasks: names of the runs' data
    scores        scores[i][t]: accuracy of what was merged after run i+1 on the held-out rows of task t; None: not scored
    losses        the same in nats per token
    average_accuracy, backward_transfer, forgetting   what the scores come to (docs/multi-run.md); None: not known
    recoveries    in words, one for each fault that was recovered from
    report_path   campaign.json, or None where nothing was scored; plots: pictures of it
    duration_seconds  of supervision; export: what was made of the adapter in the same run, or None
    callback_error    the callback that raised, and was not called again from there on, in words; empty if none did
    """

    run_id: str
    status: str
    runs: list[CampaignRun]
    total_runs: int
    adapter_path: Path | None
    output_path: Path
    merged: str
    tasks: list[str]
    scores: Matrix
    losses: Matrix
    average_accuracy: float | None
    backward_transfer: float | None
    forgetting: float | None
    report_path: Path | None
    plots: list[Path]
    recoveries: list[str] = field(default_factory=list)
    duration_seconds: float = 0.0
    export: Export | None = None
    callback_error: str = ""

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def final_loss(self) -> float | None:
        """Of the newest run, at its last step."""
        return self.runs[-1].final_loss if self.runs else None

    @property
    def recovery_count(self) -> int:
        return len(self.recoveries)

    def document(self) -> dict[str, object]:
        """For JSON, without the export: paths are text."""
        return {name: _plain(value) for name, value in asdict(self).items() if name != "export"}

    def __str__(self) -> str:
        scored = "" if self.average_accuracy is None else f", average accuracy {self.average_accuracy:.1%}"
        forgot = "" if self.backward_transfer is None else f", backward transfer {self.backward_transfer:+.1%}"
        again = f", recovered from {len(self.recoveries)} faults" if self.recoveries else ""
        return (
            f"campaign {self.run_id[:8]} {self.status}: {len(self.runs)}/{self.total_runs} runs{scored}{forgot}{again}"
        )


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


class CampaignSummary:
    """Folds a campaign's events, of all its supervisors, into a Campaign."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._spec = load_spec(run_dir)
        self._facts = Facts.of(self._spec)
        self._wanted = len(self._facts.links)
        self._exported = ExportSummary(run_dir)
        self._supervised = Supervised()
        self.view = RunView(run_id=run_dir.run_id)

    def event(self, event: Event) -> None:
        self.view.see(event)
        self._supervised.see(event)
        self._facts.event(event)
        self._exported.event(event)
        if isinstance(event, events.CampaignExtended):
            self._wanted = len(self._facts.links)

    def close(self) -> None:
        pass

    def report(self) -> CampaignReport:
        """As far as it has come."""
        return current_report(self._run_dir, self._facts)

    def latest(self) -> CampaignRun | None:
        """The newest run that is merged."""
        runs = _runs(self.report())
        return runs[-1] if runs else None

    def campaign(self) -> Campaign:
        """After RunEnded."""
        ended, report, home = self.view.ended, self.report(), self._run_dir
        assert ended is not None
        at = report.totals[-1] if report.totals else Totals(run=0)
        pictures = [home.campaign_plot(kind) for kind in PLOTS]
        return Campaign(
            run_id=home.run_id,
            status=ended.status,
            runs=_runs(report),
            total_runs=self._wanted,
            adapter_path=Path(ended.adapter) if ended.adapter else None,
            output_path=home.path,
            merged=report.rule,
            tasks=list(report.tasks),
            scores=_matrix(report, "accuracy"),
            losses=_matrix(report, "loss"),
            average_accuracy=at.average_accuracy,
            backward_transfer=at.backward_transfer,
            forgetting=at.forgetting,
            report_path=home.campaign_report if home.campaign_report.is_file() else None,
            plots=[picture for picture in pictures if picture.is_file()],
            recoveries=list(self.view.recoveries),
            duration_seconds=self._supervised.seconds,
            export=self._exported.export,
        )


def current_report(run_dir: RunDir, facts: Facts) -> CampaignReport:
    """Made anew, with the weights that the newest merge's own record states, if that can be read."""
    combined = None
    if facts.merged:
        try:
            combined = campaign_adapter.combined(Path(facts.merged[facts.last].folder))
        except (OSError, ValueError):
            pass  # the weights are then not known, and all the rest is
    return campaign_report.make(load_spec(run_dir), facts, combined)


def _runs(report: CampaignReport) -> list[CampaignRun]:
    totals = {total.run: total for total in report.totals}
    return [_run(part, totals.get(part.run, Totals(run=part.run))) for part in report.runs if part.rule]


def _run(part: RunPart, totals: Totals) -> CampaignRun:
    return CampaignRun(
        number=part.run,
        name=part.name,
        run_id=part.run_id,
        steps=part.steps,
        final_loss=part.final_loss,
        adapter_path=Path(part.adapter),
        rule=part.rule,
        coefficient=part.coefficient,
        weight=part.weight,
        accuracy=totals.average_accuracy,
        loss=totals.average_loss,
        recovery_count=part.recoveries,
        duration_seconds=part.seconds,
    )


def _matrix(report: CampaignReport, what: str) -> Matrix:
    """One row for each trained run, one column for each task so far taught; None where nothing was scored."""
    runs, tasks = len(report.runs), len(report.tasks)
    found: Matrix = [[None] * tasks for _ in range(runs)]
    for cell in report.scores:
        if cell.candidate == MERGED and cell.run <= runs:
            found[cell.run - 1][cell.task] = cell.accuracy if what == "accuracy" else cell.loss
    return found
