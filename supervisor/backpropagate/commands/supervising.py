"""What `train`, `resume`, `export` and `push` have in common: this process becomes the supervisor of a run, or starts one."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from backpropagate.screen import Screen
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

if TYPE_CHECKING:
    from backpropagate.api.campaign_result import CampaignSummary
    from backpropagate.api.export_result import ExportSummary
    from backpropagate.judge.held_out import Scores
    from backpropagate.outcome import Outcome
    from backpropagate.watch.sinks import Sink

_DETACH_PATIENCE = 20.0  # seconds until a detached supervisor must have said that it began


def begin(screen: Screen, spec: RunSpec, detach: bool) -> int:
    """Makes the run's directory and supervises it; if it cannot even begin, nothing of it stays."""
    from backpropagate.keep import runs

    run_dir = runs.create(spec)
    with runs.beginning(run_dir):
        return _supervised(screen, run_dir, detach, resumed=False, wait=spec.safety.wait_for_lock)


def go_on(screen: Screen, run_dir: RunDir, detach: bool, wait: bool) -> int:
    """The same for a run that was interrupted or failed. Raises STATE_RUN_FINISHED for one that is complete."""
    from backpropagate.keep import history, runs

    runs.check_its_own(run_dir, runs.load_spec(run_dir))
    row = history.show(run_dir)
    if row.status == "completed":
        more = f"Give it one more run: backprop multi-run --append DATA {run_dir.run_id[:8]}"
        advice = more if row.session_kind == "multi_run" else None
        raise error_for("STATE_RUN_FINISHED", "the run is complete", suggestion=advice, run_id=run_dir.run_id)
    return _supervised(screen, run_dir, detach, resumed=runs.has_begun(run_dir), wait=wait)


def extended(screen: Screen, run_dir: RunDir, detach: bool, wait: bool) -> int:
    """The same for a finished campaign that was just given one more run."""
    return _supervised(screen, run_dir, detach, resumed=True, wait=wait)


def _supervised(screen: Screen, run_dir: RunDir, detach: bool, *, resumed: bool, wait: bool) -> int:
    return _detached(screen, run_dir, wait) if detach else _in_foreground(screen, run_dir, resumed, wait)


def _in_foreground(screen: Screen, run_dir: RunDir, resumed: bool, wait: bool) -> int:
    import msgspec

    from backpropagate.api.campaign_result import CampaignSummary
    from backpropagate.api.export_result import ExportSummary
    from backpropagate.api.result import Summary
    from backpropagate.doors.environ import environment
    from backpropagate.drive.waiting import supervise_when_free
    from backpropagate.keep import journal, runs
    from backpropagate.watch.console import sink_for

    summary, exported = Summary(run_dir), ExportSummary(run_dir)
    campaign = CampaignSummary(run_dir) if runs.load_spec(run_dir).kind == "campaign" else None
    remembering: list[Sink] = [exported] if campaign is None else [exported, campaign]
    for event in journal.read(run_dir.events) if resumed else ():
        for sink in remembering:
            sink.event(event)  # what earlier supervisors of this run have done already
    sinks: list[Sink] = [summary, *remembering]
    if not screen.json:
        sinks.append(sink_for(sys.stderr, environment(), verbose=screen.verbose))
    try:
        outcome = supervise_when_free(run_dir, sinks, screen.note, resumed=resumed, wait=wait)
    finally:
        for sink in sinks:
            sink.close()
    advice = outcome.suggestion or (CATALOGUE[outcome.code].remedy if outcome.code else "")
    outcome = msgspec.structs.replace(outcome, suggestion=advice.replace("backprop resume RUN", runs.resuming(run_dir)))
    document: dict[str, object] = {
        **msgspec.to_builtins(outcome),
        "recovered": summary.view.recoveries,
        "run_dir": str(run_dir.path),
        **_exported_document(exported),
        **({} if campaign is None else {"campaign": campaign.campaign().document()}),
    }
    text = _in_words(outcome, runs.load_spec(run_dir), exported, summary.view.scores, campaign)
    if outcome.exit_code == ExitCode.DONE:
        screen.data(document, text)
    else:
        code = outcome.code or "RUNTIME_TRAINING_FAILED"
        message = outcome.message or f"the run is {outcome.status}"
        error = error_for(code, message, suggestion=outcome.suggestion or None, run_id=outcome.run_id)
        if outcome.exit_code == ExitCode.PARTIAL and not screen.json:
            screen.data(None, text)  # what there is, although a later stage failed
        screen.error(error, document, outcome.exit_code)
    return outcome.exit_code


def _exported_document(summary: ExportSummary) -> dict[str, object]:
    from dataclasses import asdict

    made = summary.export
    if made is not None:
        return {"exported": made.document()}
    return {} if summary.proof is None else {"proof": asdict(summary.proof)}


def _in_words(
    outcome: Outcome,
    spec: RunSpec,
    summary: ExportSummary,
    scores: Scores,
    campaign: CampaignSummary | None = None,
) -> str:
    from backpropagate.judge.plan import full, trains

    lines = [("run" if campaign is None else "campaign", outcome.run_id), ("status", outcome.status)]
    if campaign is not None:
        lines += _campaign_in_words(campaign)
    if spec.kind == "train":
        lines.append(("steps", f"{outcome.step}/{outcome.total_steps}"))
        if outcome.final_loss is not None:
            lines.append(("loss", f"{outcome.final_loss:.4f}"))
        lines += _scores_in_words(outcome, scores)
    if outcome.recoveries:
        lines.append(("faults", f"recovered from {outcome.recoveries}"))
    if trains(spec):
        lines.append(("model" if full(spec) else "adapter", str(outcome.adapter)))
    if outcome.url:
        lines.append(("pushed", outcome.url))
    lines += _export_in_words(summary)
    text = "\n".join(f"{name:8} {value}" for name, value in lines)
    return text if campaign is None else "\n".join([text, *_scores(campaign)])


def _scores_in_words(outcome: Outcome, scores: Scores) -> list[tuple[str, str]]:
    """`held-out 1.2345 at step 40, which the adapter is of; stopped early`."""
    if scores.best is None:
        return []
    step, loss = scores.best
    said = f"{loss:.4f} at step {step}" + (", whose weights the result has" if outcome.best_step == step else "")
    return [("held-out", said + ("; stopped early" if outcome.stopped_early else ""))]


def _campaign_in_words(summary: CampaignSummary) -> list[tuple[str, str]]:
    made = summary.campaign()
    lines = [("runs", f"{len(made.runs)}/{made.total_runs}")]
    if made.runs:
        newest = made.runs[-1]
        share = "" if newest.coefficient is None else f"; the newest run counts {newest.coefficient:.2f}"
        lines.append(("merged", f"by {made.merged}{share}"))
    return lines


def _scores(summary: CampaignSummary) -> list[str]:
    """The table, with an empty line before it; nothing where nothing was scored."""
    import shutil

    from backpropagate.watch.forgetting_table import lines

    table = lines(summary.report(), width=shutil.get_terminal_size().columns)
    return ["", *table] if table else []


def _export_in_words(summary: ExportSummary) -> list[tuple[str, str]]:
    from backpropagate.api.export_result import size

    made = summary.export
    lines = []
    if made is not None:
        lines.append(("export", f"{made.path} ({size(made.bytes)})"))
    if summary.proof is not None:
        lines.append(("proof", str(summary.proof)))
    if made is not None and made.ollama_name:
        lines.append(("ollama", f"ollama run {made.ollama_name}"))
    if made is not None and made.format == "gguf":
        quoted = f'"{made.path}"' if " " in str(made.path) else str(made.path)
        lines.append(("chat", f"backprop chat {quoted}"))
    return lines


def _detached(screen: Screen, run_dir: RunDir, wait: bool) -> int:
    from backpropagate.doors.launch import start
    from backpropagate.keep import runs
    from backpropagate.keep.journal import Follower

    spec = runs.load_spec(run_dir)
    follower = Follower(run_dir.events, from_end=True)
    supervisor = start(run_dir, owned=False, wait=wait)
    # A run with an export begins only when its preflight is over, and that may fetch files of the model.
    patience = _DETACH_PATIENCE + (spec.safety.load_deadline if spec.export is not None else 0.0)
    deadline = time.monotonic() + patience
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
    document = {
        "run_id": run_dir.run_id,
        "run_dir": str(run_dir.path),
        "pid": supervisor.process.pid,
        "detached": True,
        "stop": runs.stopping(run_dir),
    }
    screen.data(document, run_dir.run_id)
    screen.note(f"It runs in the background (process {supervisor.process.pid}). Its log: {run_dir.supervisor_log}")
    screen.note(f"Stop it with: {runs.stopping(run_dir)}")
    return 0
