"""The policy's numbered invariants, against any sequence of events that the world may think of."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate.judge import decisions as d
from backpropagate.judge.halving import halved, largest_divisor
from backpropagate.judge.plan import Start
from backpropagate.judge.policy import Policy
from backpropagate.judge.states import State
from backpropagate_protocol import messages as m
from backpropagate_protocol.catalogue import ExitCode
from tests.supervisor.transcript import spec

EFFECTIVE = 24

steps = st.integers(0, 20)
messages = st.one_of(
    st.just(m.Hello(m.PROTOCOL_VERSION, 1, "", {})),
    st.builds(m.PhaseChanged, st.sampled_from(m.Phase)),
    st.just(m.DataReady("x", "y", "text", 1, 0, 1, 1, 0)),
    st.builds(lambda s: m.Progress(s, 20, 8 * s, 0, 1.0, step_seconds=0.1), steps),
    st.builds(lambda s: m.CheckpointSaved(f"step-{s:08d}", s, 8 * s, 0, 0.1, 1), steps),
    st.builds(lambda n: m.CheckpointFailed(1, "RUNTIME_DISK_FULL", "full", n), st.integers(1, 4)),
    st.builds(lambda k, s: m.Fault(k, "RUNTIME_TRAINING_FAILED", "x", step=s), st.sampled_from(m.FaultKind), steps),
    st.just(m.Stopped(1, True)),
    st.just(m.Done(m.TrainResult("/a", 20, 160, 0, 0.1))),
    st.just(m.Started("toy", "toy", 0, 20, 0, 8, 3, 1, 1, "fp32")),
)
found = st.none() | st.builds(lambda s: d.Found(f"step-{s:08d}", s), steps)

# What the world may do, but for ticks and for what only follows an action.
happenings = st.one_of(
    st.builds(lambda x: ("said", x), messages),
    st.just(("garbled", None)),
    st.builds(lambda oom: ("exited", oom), st.booleans()),
    st.builds(lambda x: ("found", x), found),
    st.just(("unreadable", None)),
    st.builds(lambda t: ("tick", t), st.floats(0, 4000)),
    st.builds(lambda t: ("late", t), st.floats(1, 4000)),
    st.builds(lambda c: ("celsius", c), st.integers(30, 110)),
    st.just(("lost", None)),
    st.just(("limits", None)),
)


class World:
    """Plays happenings to a policy and watches its actions."""

    def __init__(self, **safety: object) -> None:
        self.policy = Policy(spec(EFFECTIVE, **safety), Start(micro_batch=24))
        self.now = 0.0
        self.alive = False
        self.ended = False
        self.assigned: list[d.Assign] = []
        self.spawns_since_progress = 0
        self.best_step = 0
        self.tell(d.Begin(0.0))

    def tell(self, input: d.Input) -> None:
        actions = self.policy.handle(input)
        assert not (self.ended and actions), "something follows Finish"
        for action in actions:
            assert not self.ended, "something follows Finish"
            match action:
                case d.Spawn():
                    assert not self.alive, "two children at once"
                    self.alive = True
                    self.spawns_since_progress += 1
                case d.Assign():
                    assert self.alive, "a Job without a child"
                    assert action.micro_batch * action.accumulation == EFFECTIVE
                    self.assigned.append(action)
                case d.Finish():
                    self.ended = True
                case _:
                    pass
        assert self.ended == (self.policy.state is State.ENDED)

    def happen(self, kind: str, value: object) -> None:
        now = self.now
        match kind, value:
            case "said", message:
                if isinstance(message, m.CheckpointSaved) and self.alive and message.step > self.best_step:
                    self.best_step, self.spawns_since_progress = message.step, 1
                if self.alive:
                    self.tell(d.RunnerSaid(now, message))  # type: ignore[arg-type]  # drawn from the union
            case "garbled", _:
                if self.alive:
                    self.tell(d.RunnerGarbled(now, "noise"))
            case "exited", oom:
                if self.alive:
                    self.alive = False
                    self.tell(d.RunnerExited(now, d.Death(-9, "died", host_oom=bool(oom))))
            case "found", None:
                self.tell(d.CheckpointFound(now, None))
            case "found", d.Found() as checkpoint:
                self.tell(d.CheckpointFound(now, checkpoint))
            case "unreadable", _:
                self.tell(d.SearchFailed(now, "an I/O error"))
            case "tick", float() as seconds:
                self.now += seconds
                self.tell(d.Tick(self.now))
            case "late", float() as seconds:
                self.now += seconds
                self.tell(d.Tick(self.now, seconds))
            case "celsius", int() as degrees:
                self.tell(d.Temperature(now, degrees))
            case "lost", _:
                self.tell(d.SensorLost(now, "gone"))
            case "limits", _:
                self.tell(d.CardLimits(now, 85, 92))


@given(st.lists(happenings, max_size=60))
@settings(deadline=None)
def test_any_sequence_of_events_keeps_the_invariants(story: list[tuple[str, object]]) -> None:
    world = World()
    for kind, value in story:
        world.happen(kind, value)


@given(st.lists(happenings, max_size=40), st.booleans())
@settings(deadline=None)
def test_after_a_stop_every_way_ends(story: list[tuple[str, object]], kill: bool) -> None:
    """By the ladder's last rung and the kill's patience at the latest, even if the child never goes away."""
    world = World()
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


@given(st.lists(st.sampled_from(["exited", "oom", "internal", "cuda"]), min_size=40, max_size=40), st.integers(0, 20))
@settings(deadline=None)
def test_without_progress_the_respawns_are_bounded(deaths: list[str], seed: int) -> None:
    world = World(max_respawns=3, max_halvings=3)
    spawned = 0
    for number, death in enumerate(deaths):
        if world.ended:
            break
        world.tell(d.CheckpointFound(world.now, None))
        world.now += 100.0
        world.tell(d.Tick(world.now, 0.0))
        if world.alive:
            spawned += 1
            world.tell(d.RunnerSaid(world.now, m.Hello(m.PROTOCOL_VERSION, 1, "", {})))
            if death != "exited":
                kind = {"oom": m.FaultKind.OOM, "internal": m.FaultKind.INTERNAL, "cuda": m.FaultKind.CUDA}[death]
                fault = m.Fault(kind, "RUNTIME_TRAINING_FAILED", "x", step=seed + number)
                world.tell(d.RunnerSaid(world.now, fault))
            world.happen("exited", False)
    assert world.ended
    assert spawned <= 1 + 3 + 3 + 1  # the first, the budget, the halvings, gradient checkpointing


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
