"""The policy's numbered invariants, against any sequence of events that the world may think of."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate.judge import decisions as d
from backpropagate.judge.halving import halved, largest_divisor
from backpropagate.judge.policy import Policy
from backpropagate.judge.start import Start
from backpropagate_protocol import messages as m
from tests.supervisor.judge.world import HELLO, Happening, World, steps, stories
from tests.supervisor.transcript import spec

EFFECTIVE = 24

messages = st.one_of(
    st.just(HELLO),
    st.builds(m.PhaseChanged, st.sampled_from(m.Phase)),
    st.just(m.DataReady("x", "y", "text", 1, 0, 1, 1, 0)),
    st.builds(lambda s: m.Progress(s, 20, 8 * s, 0, 1.0, step_seconds=0.1), steps),
    st.builds(lambda s: m.CheckpointSaved(f"step-{s:08d}", s, 8 * s, 0, 0.1, 1), steps),
    st.builds(lambda n: m.CheckpointFailed(1, "RUNTIME_DISK_FULL", "full", n), st.integers(1, 4)),
    st.builds(lambda k, s: m.Fault(k, "RUNTIME_TRAINING_FAILED", "x", step=s), st.sampled_from(m.FaultKind), steps),
    st.builds(
        lambda p, s, o: m.Fault(m.FaultKind.OOM, "RUNTIME_GPU_OOM", "x", phase=p, step=s, others=o),
        st.sampled_from((m.Phase.LOAD, m.Phase.TRAIN, m.Phase.EVALUATE)),
        steps,
        st.sampled_from((0, 9_000)),
    ),
    st.builds(lambda n, s: m.Halved(s, n, EFFECTIVE // n, "x"), st.sampled_from((12, 6, 3, 1)), steps),
    st.just(m.Rehearsed(24, 100, 0.1)),
    st.just(m.Stopped(1, True)),
    st.just(m.Done(m.TrainResult("/a", 20, 160, 0, 0.1))),
    st.just(m.Started("toy", "toy", 0, 20, 0, 8, 3, 1, 1, "fp32")),
)


class Training(World):
    """A training's policy in its world."""

    def __init__(self, **safety: object) -> None:
        super().__init__(Policy(spec(EFFECTIVE, **safety), Start(micro_batch=24)))

    def watch(self, action: d.Action) -> None:
        if isinstance(action, d.Assign):
            assert action.micro_batch * action.accumulation == EFFECTIVE
            assert all(EFFECTIVE % smaller == 0 for smaller in action.smaller)
            assert [*action.smaller] == sorted({*action.smaller} - {action.micro_batch}, reverse=True)


def test_a_resumed_run_knows_from_its_journal_what_saves_take_and_misses_one_that_stands_still() -> None:
    for slowest, deadline in ((None, 900.0), (0.5, 120.0)):
        world = World(Policy(spec(EFFECTIVE, hang_floor=30.0), Start(micro_batch=24, slowest_save=slowest)))
        world.happen("said", HELLO)
        world.happen("found", d.Found("step-00000004", 4))
        world.happen("said", m.Started("toy", "toy", 4, 20, 0, 24, 1, 1, 1, "fp32"))
        world.happen("said", m.PhaseChanged(m.Phase.CHECKPOINT))
        assert world.policy.wake_at == deadline


@given(stories(messages, longest=60))
@settings(deadline=None)
def test_any_sequence_of_events_keeps_the_invariants(story: list[Happening]) -> None:
    Training().live_through(story)


@given(stories(messages, longest=40), st.booleans())
@settings(deadline=None)
def test_after_a_stop_every_way_ends(story: list[Happening], kill: bool) -> None:
    """By the ladder's last rung and the kill's patience at the latest, even if the child never goes away."""
    world = Training()
    world.live_through(story)
    world.stop(kill=kill)


@given(st.lists(st.sampled_from(["exited", "oom", "internal", "cuda"]), min_size=40, max_size=40), st.integers(0, 20))
@settings(deadline=None)
def test_without_progress_the_respawns_are_bounded(deaths: list[str], seed: int) -> None:
    world = Training(max_respawns=3, max_halvings=3)
    for number, death in enumerate(deaths):
        if world.ended:
            break
        world.happen("found")
        world.happen("tick", 100.0)
        if world.alive:
            world.happen("said", HELLO)
            if death != "exited":
                kind = {"oom": m.FaultKind.OOM, "internal": m.FaultKind.INTERNAL, "cuda": m.FaultKind.CUDA}[death]
                world.happen("said", m.Fault(kind, "RUNTIME_TRAINING_FAILED", "x", step=seed + number))
            world.happen("exited", False)
    assert world.ended
    assert world.children <= 1 + 3 + 3 + 1  # the first, the budget, the halvings, gradient checkpointing


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_micro_batch_divides_the_effective_batch_and_halves_to_one(effective: int, wish: int) -> None:
    micro = largest_divisor(effective, wish)
    assert effective % micro == 0
    assert micro <= max(1, wish)
    smaller = halved(micro, effective)
    assert (smaller is None) == (micro == 1)
    if smaller is not None:
        assert effective % smaller == 0
        assert smaller <= micro / 2
