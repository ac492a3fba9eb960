"""Asks the supervisor of a running run, whichever process that is, to stop, and waits until it has."""

from __future__ import annotations

import time
from collections.abc import Callable

from backpropagate.events import StopRequested
from backpropagate.keep import history, runs, stop_requests
from backpropagate.keep.journal import Follower
from backpropagate.keep.locks import Holder
from backpropagate.keep.record import RunRow
from backpropagate.keep.stop_requests import StopRequest
from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import RunSpec

HEARD_WITHIN = 15.0  # seconds: it looks once a second, unless it is frozen or the machine is very busy
_ENDS_WITHIN = 60.0  # seconds after its child's own time is over: a kill, the last fault's record, the history
_ASK_EVERY = 0.1


def stopped(
    run_dir: RunDir,
    tell: Callable[[str], None] = lambda text: None,
    *,
    now: bool = False,
    wait: bool = True,
    heard_within: float = HEARD_WITHIN,
) -> RunRow | None:
    """The run's row when its supervisor has ended; None if nobody `wait`s for that, and then the request is only left.

    tell: is told what is waited for. now: without a save. Blocks. Raises STATE_RUN_NOT_RUNNING and STATE_RUN_OF_CAMPAIGN as UserInputError;
    STATE_STOP_PENDING if it does not hear the request, or does not end, within bounds (the request stays); OSError if the
    request cannot be left.
    """
    spec = runs.load_spec(run_dir)
    if spec.parent is not None:
        campaign = run_dir.output.run(spec.parent)
        text = f"run {spec.run_id} is run {spec.link} of the campaign {spec.parent}"
        advice = f"`{runs.stopping(campaign)}` stops the campaign."
        raise error_for("STATE_RUN_OF_CAMPAIGN", text, suggestion=advice, run_id=spec.run_id)
    holder = stop_requests.supervisor_of(run_dir, spec)
    if holder is None:
        raise _not_running(run_dir)
    said = Follower(run_dir.events)
    said.poll()  # what was before is no answer
    request = StopRequest(holder=holder, now=now)
    stop_requests.ask(run_dir, request)
    if not wait:
        return None
    tell(f"run {spec.run_id[:8]} is asked to {'end at once' if now else 'save and end'}; waiting until it has")
    _await_end(run_dir, spec, holder, said, heard_within)
    stop_requests.withdraw(run_dir, request)  # it ended by itself before it heard
    return history.show(run_dir)


def _not_running(run_dir: RunDir) -> BackpropagateError:
    row = history.show(run_dir)
    again = f"`{runs.resuming(run_dir)}` goes on with it."
    advice = None if row.status == "running" else "It is complete." if row.status == "completed" else again
    status = "" if row.status == "running" else f": it is {row.status}"
    return error_for(
        "STATE_RUN_NOT_RUNNING", f"run {row.run_id} is not running{status}", suggestion=advice, run_id=row.run_id
    )


def _await_end(run_dir: RunDir, spec: RunSpec, holder: Holder, said: Follower, heard_within: float) -> None:
    """Raises STATE_STOP_PENDING."""
    asked, heard = time.monotonic(), False
    deadline = asked + heard_within
    while stop_requests.supervisor_of(run_dir, spec) == holder:
        if not heard and stop_requests.is_heard(run_dir):
            heard, deadline = True, time.monotonic() + spec.safety.grace + _ENDS_WITHIN
        for event in said.poll():
            if isinstance(event, StopRequested):
                deadline = time.monotonic() + event.seconds + _ENDS_WITHIN
        if time.monotonic() > deadline:
            raise _pending(run_dir, holder, heard=heard, seconds=deadline - asked)
        time.sleep(_ASK_EVERY)


def _pending(run_dir: RunDir, holder: Holder, *, heard: bool, seconds: float) -> BackpropagateError:
    supervisor = f"its supervisor (process {holder.pid})"
    if heard:
        text = f"{supervisor} heard the request and has not ended after {seconds:.0f} s"
        advice = f"Give it time; or, without another save: `{runs.stopping(run_dir)} --now`."
    else:
        text = (
            f"{supervisor} has not heard the request within {seconds:.0f} s: it is frozen, or the machine is very busy"
        )
        advice = (
            f"The request stays, and is heard when it goes on. Or end process {holder.pid}: what it runs ends with it, "
            f"and `{runs.resuming(run_dir)}` goes on from the newest checkpoint."
        )
    return error_for("STATE_STOP_PENDING", text, suggestion=advice, run_id=run_dir.run_id)
