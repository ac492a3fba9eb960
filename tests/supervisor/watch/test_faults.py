"""A fault's record in words."""

from __future__ import annotations

import msgspec

from backpropagate.keep.faults import FaultRecord
from backpropagate.watch.faults import lines

DEAD = FaultRecord(
    run_id="r",
    number=3,
    time=0.0,
    kind="hang",
    code="RUNTIME_HANG",
    message="no progress in phase train for 60 s",
    attempt=2,
    phase="train",
    step=40,
    also=("RUNTIME_CHILD_DIED: it died",),
    pid=4711,
    death="was killed by SIGABRT",
    exit_code=-6,
    meaning="native code gave up by itself",
    ended_by="no progress in phase train for 60 s",
    seconds=3700.0,
    memory=2_048,
    device_memory=7_800,
    device_reserved=8_000,
    needed=512,
    free=100,
    card=("Xid 79, the GPU has fallen off the bus",),
    kernel=("NVRM: Xid 79",),
    last_lines=("step 40", "step 41"),
    stacks="\n".join(f"frame {i}" for i in range(60)),
    done="recovering: from step 35, batch 4 × 2",
    advice="Nothing: the run went on by itself.",
)


def test_everything_that_is_known_is_told() -> None:
    title, *body = lines([DEAD], "faults")
    assert title.endswith("attempt 2 at step 40, in train: RUNTIME_HANG")
    told = [" ".join(line.split()) for line in body]
    for line in (
        "what no progress in phase train for 60 s",
        "then RUNTIME_CHILD_DIED: it died",
        "process 4711, alive for 1 h 02 min, was killed by SIGABRT (exit status -6)",
        "ended by the supervisor: for that",
        "memory at most 2,048 MiB of the machine's, at most 7,800 MiB of the GPU's, 8,000 MiB of the GPU's reserved, "
        "512 MiB were asked for, 100 MiB were free",
        "GPU says Xid 79, the GPU has fallen off the bus",
        "kernel says NVRM: Xid 79",
        "last lines step 40",
        "step 41",
        "… and 20 more lines in its file",
        "done recovering: from step 35, batch 4 × 2",
        "to do Nothing: the run went on by itself.",
    ):
        assert line in told


def test_what_nobody_knows_takes_no_line() -> None:
    bare = FaultRecord(run_id="r", number=1, time=0.0, kind="died", code="RUNTIME_CHILD_DIED", message="it died")
    assert [line.split()[0] for line in lines([bare], "faults")] == ["fault", "what", "done"]


def test_a_child_that_wrote_nothing_since_its_imports_is_told_so() -> None:
    silent = msgspec.structs.replace(DEAD, last_lines=(), earlier_lines=("a library warns",), stacks="")
    told = "\n".join(lines([silent], "faults"))
    assert "none since its imports" in told
    assert "a library warns" not in told


def test_a_stage_is_named_by_its_name() -> None:
    [title, *_] = lines([msgspec.structs.replace(DEAD, stage="convert")], "faults")
    assert "attempt 2 in convert" in title


def test_of_many_faults_only_the_newest_are_told_in_full() -> None:
    many = [msgspec.structs.replace(DEAD, number=number) for number in range(1, 9)]
    told = lines(many, "runs/r/faults", in_full=2)
    assert [line.split(",")[0] for line in told if line.startswith("fault")] == [f"fault {n}" for n in range(1, 9)]
    assert sum("frame 0" in line for line in told) == 2
    assert "  in full in runs/r/faults" in told
