"""The stage policy's numbered invariants, against any sequence of events; and its verdicts, one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate.judge import decisions as d
from backpropagate.judge.stage import StagePolicy
from backpropagate.judge.stage_verdict import LATER, LEAST_MEMORY, MORE_TRIES, OTHER_WAYS, SMALLER_TRIES, Anew, judge
from backpropagate.judge.states import State
from backpropagate.judge.verdict import Cause, GiveUp, Kind
from backpropagate_protocol import messages as m
from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.jobs import ConvertJob, EvaluateJob, ReferenceJob
from backpropagate_protocol.spec import SafetySpec
from tests.supervisor.transcript import stage

MOST_CHILDREN = 1 + MORE_TRIES + SMALLER_TRIES + OTHER_WAYS

codes = st.sampled_from(sorted(CATALOGUE))
messages = st.one_of(
    st.just(m.Hello(m.PROTOCOL_VERSION, 1, "", {})),
    st.builds(m.PhaseChanged, st.sampled_from(m.Phase)),
    st.builds(lambda k, c, t: m.Fault(k, c, t), st.sampled_from(m.FaultKind), codes, st.sampled_from(["x", "y", "z"])),
    st.just(m.Stopped(0, False)),
    st.just(m.Done(m.Made("/a", 1))),
    st.just(m.Done(m.Answers(("no answer of a stage",)))),
    st.just(m.Notice("info", "x")),
    st.just(m.Progress(1, 2, 3, 4, 1.0)),
)
happenings = st.one_of(
    st.builds(lambda x: ("said", x), messages),
    st.just(("garbled", None)),
    st.builds(lambda oom: ("exited", oom), st.booleans()),
    st.builds(lambda t: ("tick", t), st.floats(0, 4000)),
    st.builds(lambda t: ("late", t), st.floats(1, 4000)),
    st.just(("card", None)),
)


class World:
    """Plays happenings to a policy and watches its actions."""

    def __init__(self, name: str) -> None:
        self.policy = StagePolicy("run", SafetySpec(), stage(name))
        self.now, self.alive, self.ended, self.children = 0.0, False, False, 0
        self.tell(d.Begin(0.0))

    def tell(self, input: d.Input) -> None:
        for action in self.policy.handle(input):
            assert not self.ended, "something follows Finish"
            match action:
                case d.Spawn():
                    assert not self.alive, "two children at once"
                    self.alive = True
                    self.children += 1
                    assert self.children <= MOST_CHILDREN
                case d.Give():
                    assert self.alive, "a Job without a child"
                    assert action.job.attempt == self.policy.attempt
                case d.Finish():
                    self.ended = True
                case _:
                    pass
        assert self.ended == (self.policy.state is State.ENDED)

    def happen(self, kind: str, value: object) -> None:
        match kind, value:
            case "said", message if self.alive:
                self.tell(d.RunnerSaid(self.now, message))  # type: ignore[arg-type]  # drawn from the union
            case "garbled", _ if self.alive:
                self.tell(d.RunnerGarbled(self.now, "noise"))
            case "exited", oom if self.alive:
                self.alive = False
                self.tell(d.RunnerExited(self.now, d.Death(-9, "died", host_oom=bool(oom))))
            case "tick" | "late", float() as seconds:
                self.now += seconds
                self.tell(d.Tick(self.now, seconds if kind == "late" else 0.0))
            case "card", _:
                self.tell(d.Temperature(self.now, 99))
            case _:
                pass


names = st.sampled_from(["preflight", "reference", "convert", "register", "combine", "evaluate"])


@given(names, st.lists(happenings, max_size=80))
@settings(deadline=None)
def test_any_sequence_of_events_keeps_the_invariants(name: str, story: list[tuple[str, object]]) -> None:
    world = World(name)
    for kind, value in story:
        world.happen(kind, value)


@given(names, st.lists(happenings, max_size=40), st.booleans())
@settings(deadline=None)
def test_after_a_stop_every_way_ends(name: str, story: list[tuple[str, object]], kill: bool) -> None:
    """By the ladder's last rung and the kill's patience at the latest, even if the child never goes away."""
    world = World(name)
    for kind, value in story:
        world.happen(kind, value)
    world.tell(d.StopAsked(world.now, "sigterm", ExitCode.TRY_LATER, kill=kill))
    for _ in range(20):
        if world.ended:
            break
        wake = world.policy.wake_at
        assert wake is not None, f"nothing is awaited in state {world.policy.state}"
        world.now = max(world.now, wake)
        world.tell(d.Tick(world.now))
    assert world.ended


@given(names, st.lists(st.sampled_from(m.FaultKind), min_size=MOST_CHILDREN, max_size=MOST_CHILDREN), codes)
@settings(deadline=None)
def test_a_stage_that_only_fails_ends(name: str, faults: list[m.FaultKind], code: str) -> None:
    world = World(name)
    for number, kind in enumerate(faults):
        world.happen("said", m.Hello(m.PROTOCOL_VERSION, 1, "", {}))
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
