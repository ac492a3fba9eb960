"""Events and the state of a run in words: the same for terminal, log and notebook."""

from __future__ import annotations

from backpropagate import events
from backpropagate.events import Event
from backpropagate.watch import campaigns, stages
from backpropagate.watch.view import (
    RunView,
    duration,
    heat_in_words,
    held_out,
    learning_rate,
    measured,
    memory,
    span,
    trouble_in_words,
)


def progress_line(view: RunView) -> str:
    parts = [f"step {view.step}/{view.total_steps}"]
    if view.loss is not None:
        parts.append(f"loss {view.loss:.4f}")
    if measured(view):
        parts.append(measured(view))
    if held_out(view):
        parts.append(held_out(view))
    if learning_rate(view):
        parts.append(learning_rate(view))
    speed = view.tokens_per_second
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    remaining = view.remaining
    if remaining is not None and view.step < view.total_steps:
        parts.append(f"{span(*remaining)} left")
    if memory(view):
        parts.append(memory(view))
    if view.celsius:
        parts.append(f"{view.celsius} °C")
    return "  ".join(parts)


_PHASES = {
    "import": "loading the frameworks",
    "validate": "reading the data",
    "tokenize": "preparing the data",
    "load": "loading the model",
    "first_step": "first step",
    "finish": "writing the adapter",
    "evaluate": "scoring the held-out rows",
}


# The owner's pipe says `stop` for an interrupt as for a callback that had enough; both come from the user.
_REASONS = {"ctrl-c": "as asked", "owner-gone": "(whoever started it is gone)"}


def in_phase(view: RunView) -> str:
    """What the run is busy with beside its steps, with a percentage where one is known."""
    if view.stage.name:
        left = view.stage.remaining
        return str(view.stage) + (f"  {duration(left)} left" if left is not None else "")
    percent = f" {100 * view.phase_done // view.phase_total} %" if view.phase_total else ""
    return _PHASES.get(view.phase, view.phase) + percent


def in_words(event: Event) -> str:
    """One line for an event that matters; nothing for the others."""
    match event:
        case events.RunCreated():
            return f"run {event.run_id} started"
        case events.RunResumed():
            return f"run {event.run_id} resumed (it was {event.previous})"
        case events.AttemptStarted():
            start = f" from step {event.resume_step}" if event.checkpoint else ""
            saving = ", with gradient checkpointing" if event.gradient_checkpointing else ""
            standby = ", by the standby" if event.standby else ""
            return f"attempt {event.attempt}{start}, batch {event.micro_batch} × {event.accumulation}{saving}{standby}" if event.attempt > 1 else ""  # fmt: skip
        case (
            events.CampaignExtended()
            | events.LinkStarted()
            | events.LinkEnded()
            | events.LinkMerged()
            | events.LinkScored()
        ):
            return campaigns.in_words(event)
        case events.StageStarted():
            return stages.begun(event)
        case events.StageEnded():
            return stages.ended(event)
        case events.RouteFound():
            return stages.route(event)
        case events.ExportProved():
            return stages.proof(event)
        case events.Exported():
            return f"exported to {event.path}"
        case events.PhaseEntered():
            return _PHASES.get(event.phase, "") if event.phase != "evaluate" else ""  # its score says it better
        case events.DataPrepared():
            skipped = f", {event.skipped} skipped" if event.skipped else ""
            cut = f", {event.truncated} cut at the length limit" if event.truncated else ""
            apart = f", {event.held_out_rows} more held out" if event.held_out_rows else ""
            return f"data: {event.rows} rows ({event.format}), {event.tokens:,} tokens{skipped}{cut}{apart}"
        case events.ModelReady():
            return (
                f"training on {event.device} in {event.precision}, batch {event.micro_batch} × {event.accumulation}, "
                f"{event.trainable_parameters:,} of {event.parameters:,} parameters"
            )
        case events.Rehearsal():
            return f"the longest rows fit: {event.micro_batch} at once, of up to {event.tokens:,} tokens"
        case events.BatchHalved():
            where = f"step {event.step} is done anew" if event.step else "tried again"
            return f"out of memory: {where} in smaller parts, batch {event.micro_batch} × {event.accumulation}"
        case events.MemoryAwaited():
            return f"{event.memory:,} MiB of the GPU's memory are held by {event.holders}: waiting until they are free"
        case events.Evaluation():
            best = ", the best so far" if event.best else ""
            return f"step {event.step}: loss {event.loss:.4f} on {event.rows} held-out rows{best}"
        case events.CheckpointMissed():
            return f"checkpoint at step {event.step} failed ({event.failures} in a row): {event.message}"
        case events.CheckpointQuarantined():
            return f"checkpoint {event.name} is damaged and was put aside: {event.reason}"
        case events.Noticed():
            return f"{'warning: ' if event.level == 'warning' else ''}{event.text}"
        case events.FaultSeen():
            death = f" ({event.death})" if event.death and event.death not in event.message else ""
            said, *_ = event.message.split("\n", 1)  # the rows that a data set is refused for are told once, at the end
            where = f"in {event.stage}" if event.stage else f"at step {event.step}"
            return f"fault {where}: {event.code}: {said}{death}"
        case events.Recovering():
            wait = f" in {duration(event.delay)}" if event.delay >= 1 else ""
            if event.stage:
                return f"recovering{wait}: {event.stage}, once more"
            where = f"step {event.resume_step}" if event.checkpoint else "the start"
            return f"recovering{wait}: from {where}, batch {event.micro_batch} × {event.accumulation}"
        case events.Heat():
            return heat_in_words(event)
        case events.CardTrouble():
            return trouble_in_words(event)
        case events.StopRequested():
            return f"stopping {_REASONS.get(event.reason, f'({event.reason})')}{', saving first' if event.save else ''}"
        case events.RunEnded():
            took = f"after {duration(event.seconds)}" + (
                f" ({duration(event.earlier)} more before)" if event.earlier else ""
            )
            if event.kind != "train":
                return f"{event.kind} {event.status} {took}"
            where = f"at step {event.step}/{event.total_steps}" if event.total_steps else "before the first step,"
            chosen = f", the result is of step {event.best_step}" if event.best_step not in (0, event.step) else ""
            return f"{event.status} {where} {took}{chosen}"
        case events.Step() | events.CheckpointCommitted() | events.FaultRecorded():
            return ""


def in_all_words(event: Event) -> str:
    """The same, and below a fault the traceback that came with it: what --verbose shows."""
    traceback = event.traceback.rstrip() if isinstance(event, events.FaultSeen) else ""
    return f"{in_words(event)}\n{traceback}" if traceback else in_words(event)
