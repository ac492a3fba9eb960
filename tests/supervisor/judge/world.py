"""A world for policies: it plays any sequence of events to one, and holds it to what `judge/child.py` promises."""

from __future__ import annotations

from hypothesis import strategies as st

from backpropagate.judge import decisions as d
from backpropagate.judge.child import ChildPolicy
from backpropagate.judge.states import State
from backpropagate.judge.vitals import Vitals
from backpropagate_protocol import messages as m
from backpropagate_protocol.catalogue import ExitCode

Happening = tuple[str, object]

HELLO = m.Hello(m.PROTOCOL_VERSION, 1, "", {})

steps = st.integers(0, 20)
_found = st.none() | st.builds(lambda s: d.Found(f"step-{s:08d}", s), steps)


def stories(messages: st.SearchStrategy[m.ToParent], longest: int) -> st.SearchStrategy[list[Happening]]:
    """Whatever the world may do, in any order, with a child that says these messages."""
    happenings: st.SearchStrategy[Happening] = st.one_of(
        st.builds(lambda x: ("said", x), messages),
        st.just(("garbled", None)),
        st.builds(lambda oom: ("exited", oom), st.booleans()),
        st.builds(lambda x: ("found", x), _found),
        st.just(("unreadable", None)),
        st.builds(lambda t: ("tick", t), st.floats(0, 4000)),
        st.builds(lambda t: ("late", t), st.floats(1, 4000)),
        st.builds(lambda c: ("celsius", c), st.integers(30, 110)),
        st.just(("lost", None)),
        st.builds(lambda x: ("xid", x), st.integers(1, 172)),
        st.builds(
            lambda x: ("vitals", x),
            st.builds(Vitals, throttle=st.integers(0, 255), recovery=st.none() | st.integers(0, 8)),
        ),
        st.just(("gone", None)),
        st.just(("spilled", None)),
        st.just(("short", None)),
        st.just(("limits", None)),
        st.builds(lambda memory: ("held", memory), st.sampled_from((0, 300, 9_000))),
    )
    return st.lists(happenings, max_size=longest)


class World:
    """Plays happenings to a policy and watches its actions. `watch` is for what one kind of policy adds."""

    def __init__(self, policy: ChildPolicy) -> None:
        self.policy = policy
        self.now, self.alive, self.ended, self.children = 0.0, False, False, 0
        self.tell(d.Begin(0.0))

    def watch(self, action: d.Action) -> None:
        """Called with each action."""

    def tell(self, input: d.Input) -> None:
        for action in self.policy.handle(input):
            assert not self.ended, "something follows Finish"
            match action:
                case d.Spawn():
                    assert not self.alive, "two children at once"
                    self.alive = True
                    self.children += 1
                case d.Assign() | d.Give():
                    assert self.alive, "a Job without a child"
                case d.Finish():
                    self.ended = True
                case _:
                    pass
            self.watch(action)
        assert self.ended == (self.policy.state is State.ENDED)

    def happen(self, kind: str, value: object = None) -> None:
        """What only a child can do is passed over where none lives."""
        now = self.now
        match kind, value:
            case "said", message:
                if self.alive:
                    self.tell(d.RunnerSaid(now, message))  # type: ignore[arg-type]  # drawn from the union
            case "garbled", _:
                if self.alive:
                    self.tell(d.RunnerGarbled(now, "noise"))
            case "exited", oom:
                if self.alive:
                    self.alive = False
                    self.tell(d.RunnerExited(now, d.Death(-9, "died", host_oom=bool(oom))))
            case "found", None | d.Found():
                self.tell(d.CheckpointFound(now, value))
            case "unreadable", _:
                self.tell(d.SearchFailed(now, "an I/O error"))
            case "tick" | "late", float() as seconds:
                self.now += seconds
                self.tell(d.Tick(self.now, seconds if kind == "late" else 0.0))
            case "celsius", int() as degrees:
                self.tell(d.Temperature(now, degrees))
            case "lost", _:
                self.tell(d.SensorLost(now, "gone"))
            case "xid", int() as code:
                self.tell(d.XidSeen(now, code))
            case "vitals", Vitals() as vitals:
                self.tell(d.CardVitals(now, vitals))
            case "gone", _:
                self.tell(d.CardGone(now, "it is"))
            case "spilled", _:
                self.tell(d.MemorySpilled(now, 9000, 8000, 8000))
            case "short", _:
                self.tell(d.MemoryShort(now, "it is"))
            case "held", int() as memory:
                self.tell(d.MemoryHeld(now, memory, "blender (pid 4711)"))
            case "limits", _:
                self.tell(d.CardLimits(now, 85, 92))
            case _:
                raise AssertionError(f"nothing of the kind happens: {kind} {value!r}")

    def live_through(self, story: list[Happening]) -> None:
        for kind, value in story:
            self.happen(kind, value)

    def stop(self, *, kill: bool) -> None:
        """Asks for the end and waits for it, without a child that would ever go away."""
        self.tell(d.StopAsked(self.now, "sigterm", ExitCode.TRY_LATER, kill=kill))
        for _ in range(20):
            if self.ended:
                break
            wake = self.policy.wake_at
            assert wake is not None, f"nothing is awaited in state {self.policy.state}"
            self.now = max(self.now, wake)
            self.tell(d.Tick(self.now))
        assert self.ended
