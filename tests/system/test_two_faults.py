"""A second fault while the run recovers from a first: every pair, and no step is won in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest

from backpropagate.events import AttemptStarted, CheckpointQuarantined, FaultSeen
from backpropagate_protocol.spec import RunSpec
from tests.conftest import Oracle
from tests.system.supervised import supervisor, toy_spec

pytestmark = pytest.mark.slow

FIRST = ["sigkill", "error", "garbage", "oom", "spoilt", "hang"]
# In the child that replaces the one of the first fault: while it loads, at its first step, and in its first save.
SECOND = ["sigkill:0", "exit0:0", "segfault", "host_oom", "garbage", "hang", "sigkill_in_save"]
SAVE = 5
BATCH = 1024


def faults_of(first: str) -> Iterator[str]:
    """First fault at step 5n+4, second one in the next child before it gets as far as that."""
    attempt = 1
    for number, second in enumerate(SECOND):
        newest = SAVE * number
        if first == "spoilt":
            newest += SAVE
            yield f"torn_save:{newest}:{attempt}"
        yield from exactly("sigkill" if first == "spoilt" else first, newest + 4, attempt)
        kind, _, step = second.partition(":")
        if kind == "sigkill_in_save":
            yield f"{kind}:{newest if first == 'spoilt' else newest + SAVE}:{attempt + 1}"
        else:
            yield from exactly(kind, int(step or newest + 2), attempt + 1)
        attempt += 2


def exactly(kind: str, step: int, attempt: int) -> Iterator[str]:
    yield f"{kind}:{step}:{attempt}"
    if kind == "garbage":  # its child would train on until it is ended
        yield f"hold:{step}:{attempt}"


def a_spec(oracle: Oracle, first: str) -> RunSpec:
    rows = oracle.home / "rows.jsonl"
    if not rows.exists():  # many samples a step, so that there is enough to halve
        rows.write_text("".join(json.dumps({"text": f"row {row}"}) + "\n" for row in range(BATCH + BATCH // 8)))
    faults = faults_of(first) if first else ()
    safety: dict[str, object] = {"max_respawns": 9, "max_halvings": 99, "hang_floor": 1.5, "standby": "off"}
    spec = toy_spec(oracle.output(first or "none"), *faults, toy="toy", steps=SAVE * (len(SECOND) + 2), **safety)
    return msgspec.structs.replace(
        spec, train=msgspec.structs.replace(spec.train, effective_batch=BATCH, batch_size=BATCH)
    )


def test_every_second_fault_during_the_recovery_from_every_first_changes_no_sample(oracle: Oracle) -> None:
    """The runs go on side by side, each in a folder of its own: most of their time is back-off and deadlines."""
    with ExitStack() as all_of_them:
        runs = {first: all_of_them.enter_context(supervisor(a_spec(oracle, first))) for first in ("", *FIRST)}
        for first, run in runs.items():
            assert run.wait() == 0, f"{first}: {run.output()} {run.ended()}"
        undisturbed = runs.pop("").ended()
        for first, run in runs.items():
            assert (run.ended().samples_seen, run.ended().order) == (undisturbed.samples_seen, undisturbed.order), first
            seen = run.of(FaultSeen)
            assert len(seen) >= 2 * len(SECOND), [fault.kind for fault in seen]
            assert len(run.of(AttemptStarted)) == len(seen) + 1
            assert len(run.of(CheckpointQuarantined)) == (len(SECOND) if first == "spoilt" else 0)
