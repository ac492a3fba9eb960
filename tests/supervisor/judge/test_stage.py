"""The stage policy's numbered invariants, against any sequence of events; and its verdicts, one by one."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate.judge import decisions as d
from backpropagate.judge.stage import StagePolicy
from backpropagate.judge.stage_verdict import LATER, LEAST_MEMORY, MORE_TRIES, OTHER_WAYS, SMALLER_TRIES, Anew, judge
from backpropagate.judge.verdict import Cause, GiveUp, Kind
from backpropagate_protocol import messages as m
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.jobs import ConvertJob, EvaluateJob, ReferenceJob
from backpropagate_protocol.spec import SafetySpec
from tests.supervisor.judge.world import HELLO, Happening, World, stories
from tests.supervisor.transcript import stage

MOST_CHILDREN = 1 + MORE_TRIES + SMALLER_TRIES + OTHER_WAYS

codes = st.sampled_from(sorted(CATALOGUE))
messages = st.one_of(
    st.just(HELLO),
    st.builds(m.PhaseChanged, st.sampled_from(m.Phase)),
    st.builds(lambda k, c, t: m.Fault(k, c, t), st.sampled_from(m.FaultKind), codes, st.sampled_from(["x", "y", "z"])),
    st.just(m.Stopped(0, False)),
    st.just(m.Done(m.Made("/a", 1))),
    st.just(m.Done(m.Answers(("no answer of a stage",)))),
    st.just(m.Notice("info", "x")),
    st.just(m.Progress(1, 2, 3, 4, 1.0)),
)
names = st.sampled_from(["preflight", "reference", "convert", "register", "combine", "evaluate"])


class Staged(World):
    """A stage's policy in its world."""

    def __init__(self, name: str) -> None:
        super().__init__(StagePolicy("run", SafetySpec(), stage(name)))

    def watch(self, action: d.Action) -> None:
        assert self.children <= MOST_CHILDREN
        if isinstance(action, d.Give):
            assert action.job.attempt == self.policy.attempt


@given(names, stories(messages, longest=80))
@settings(deadline=None)
def test_any_sequence_of_events_keeps_the_invariants(name: str, story: list[Happening]) -> None:
    Staged(name).live_through(story)


@given(names, stories(messages, longest=40), st.booleans())
@settings(deadline=None)
def test_after_a_stop_every_way_ends(name: str, story: list[Happening], kill: bool) -> None:
    """By the ladder's last rung and the kill's patience at the latest, even if the child never goes away."""
    world = Staged(name)
    world.live_through(story)
    world.stop(kill=kill)


@given(names, st.lists(st.sampled_from(m.FaultKind), min_size=MOST_CHILDREN, max_size=MOST_CHILDREN), codes)
@settings(deadline=None)
def test_a_stage_that_only_fails_ends(name: str, faults: list[m.FaultKind], code: str) -> None:
    world = Staged(name)
    for number, kind in enumerate(faults):
        world.happen("said", HELLO)
        world.happen("said", m.Fault(kind, code, f"fault {number}"))
        world.happen("exited", False)
        world.happen("tick", 100.0)
    assert world.ended


def cause(kind: Kind, code: str = "RUNTIME_TRAINING_FAILED", message: str = "why") -> Cause:
    return Cause(kind, code, message)


def test_memory_is_halved_down_to_the_least_that_a_stage_can_do_with() -> None:
    convert = stage("convert")
    job = convert.job
    seen = []
    earlier: list[Cause] = []
    while isinstance(verdict := judge(cause(Kind.HOST_OOM, "RUNTIME_HOST_OOM"), convert, job, earlier), Anew):
        earlier.append(cause(Kind.HOST_OOM))
        job = verdict.job
        assert isinstance(job, ConvertJob)
        seen.append(job.memory)
    assert seen == [128, 64]
    assert min(seen) >= LEAST_MEMORY
    assert verdict.code == "RUNTIME_HOST_OOM"


def test_an_evaluation_that_finds_no_room_on_the_card_is_done_row_by_row_and_then_without_it() -> None:
    evaluate = stage("evaluate")
    oom = cause(Kind.OOM, "RUNTIME_GPU_OOM")
    ways, job = [], evaluate.job
    earlier: list[Cause] = []
    while isinstance(verdict := judge(oom, evaluate, job, earlier), Anew) and len(earlier) < 2:
        assert isinstance(verdict.job, EvaluateJob)
        ways.append((verdict.job.batch_size, verdict.job.backend))
        job, earlier = verdict.job, [*earlier, oom]
    assert ways == [(1, "auto"), (1, "cpu")]


@pytest.mark.parametrize("kind", [Kind.OOM, Kind.CUDA, Kind.GPU_BUSY, Kind.GPU_LOST])
def test_a_reference_that_the_card_cannot_make_is_made_on_the_cpu(kind: Kind) -> None:
    reference = stage("reference")
    verdict = judge(cause(kind, "RUNTIME_GPU_LOST"), reference, reference.job, [])
    assert isinstance(verdict, Anew)
    assert isinstance(verdict.job, ReferenceJob)
    assert (verdict.job.backend, verdict.delay) == ("cpu", 0.0)


def test_what_mlx_has_no_room_for_is_not_tried_on_a_cpu_that_cannot_read_it() -> None:
    oom = cause(Kind.OOM, "RUNTIME_GPU_OOM")
    reference, evaluate = stage("reference"), stage("evaluate")
    assert isinstance(reference.job, ReferenceJob)
    assert isinstance(evaluate.job, EvaluateJob)
    one_by_one = msgspec.structs.replace(evaluate.job, backend="mlx", batch_size=1)
    for of, job in ((reference, msgspec.structs.replace(reference.job, backend="mlx")), (evaluate, one_by_one)):
        verdict = judge(oom, of, job, [])
        assert isinstance(verdict, GiveUp)
        assert verdict.code == "RUNTIME_GPU_OOM"


def test_what_is_out_of_our_hands_is_tried_again_later_even_if_it_says_the_same() -> None:
    register = stage("register")
    down = cause(Kind.USER, "DEP_HUB_UNREACHABLE")
    delays = []
    earlier: list[Cause] = []
    while isinstance(verdict := judge(down, register, register.job, earlier), Anew):
        delays.append(verdict.delay)
        earlier.append(down)
    assert tuple(delays) == LATER
    assert (verdict.code, verdict.exit_code) == ("DEP_HUB_UNREACHABLE", ExitCode.TRY_LATER)


def test_a_failure_without_a_code_of_its_own_gets_the_stages() -> None:
    convert = stage("convert")
    died = [cause(Kind.DIED, "RUNTIME_CHILD_DIED", text) for text in ("one", "two", "three")]
    verdict = judge(died[2], convert, convert.job, died[:2])
    assert isinstance(verdict, GiveUp)
    assert (verdict.code, verdict.exit_code) == ("RUNTIME_GGUF_EXPORT_FAILED", ExitCode.PARTIAL)
    assert verdict.message == "convert failed 3 times: one; two; three"


@pytest.mark.parametrize("kind", [Kind.USER, Kind.MISMATCH])
def test_what_the_user_has_to_change_ends_it_with_its_own_words(kind: Kind) -> None:
    convert = stage("convert")
    verdict = judge(cause(kind, "INPUT_MODEL_UNSUPPORTED"), convert, convert.job, [])
    assert isinstance(verdict, GiveUp)
    assert (verdict.code, verdict.message) == ("INPUT_MODEL_UNSUPPORTED", "why")
