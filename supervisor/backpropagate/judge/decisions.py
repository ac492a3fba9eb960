"""The vocabulary of `policy`: what it is told, and what it answers. Two closed unions of frozen structs.

`now` is monotonic seconds. An answer is an action for `driver` to carry out, in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from backpropagate.events import Event
from backpropagate.judge.vitals import Vitals
from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.jobs import PreparedRef, StageJob
from backpropagate_protocol.messages import Save, Stop, ToParent


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended. `text` is for people: `killed by SIGSEGV`, `exited with 1`."""

    code: int | None
    text: str
    host_oom: bool = False  # the kernel's counters say that it was the memory
    device_oom: bool = False  # its last words say that it was the device's memory


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that verified."""

    name: str
    step: int
    samples_seen: int = 0
    order: int = 0
    total_steps: int = 0
    loss: float | None = None


# --- what the policy is told ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    now: float


@dataclass(frozen=True, slots=True)
class RunnerSaid:
    now: float
    message: ToParent


@dataclass(frozen=True, slots=True)
class RunnerGarbled:
    """It sent bytes that are not the protocol."""

    now: float
    text: str


@dataclass(frozen=True, slots=True)
class RunnerExited:
    """It is gone, reaped, and nothing more will be read from it."""

    now: float
    death: Death


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    now: float
    text: str


@dataclass(frozen=True, slots=True)
class CheckpointFound:
    """The answer to FindCheckpoint: the newest that verifies, or None to start from the beginning."""

    now: float
    found: Found | None


@dataclass(frozen=True, slots=True)
class SearchFailed:
    """The other answer: a checkpoint could not be read just now. It may be as good as ever."""

    now: float
    text: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. `late`: by how much this tick came later than planned, because we ourselves stood still."""

    now: float
    late: float = 0.0


@dataclass(frozen=True, slots=True)
class StopAsked:
    """reason: ctrl-c, sigterm, owner-gone, …; `kill` leaves no time for a save, and so does a second request."""

    now: float
    reason: str
    exit_code: ExitCode = ExitCode.TRY_LATER
    kill: bool = False


@dataclass(frozen=True, slots=True)
class CardKnown:
    """The card is ours, or there is none: nothing speaks against giving out the Job. Comes only if Start.wait_for_card.

    micro_batch: the one to begin with, now that the card is known; None: stay with what was planned.
    """

    now: float
    micro_batch: int | None = None


@dataclass(frozen=True, slots=True)
class CardLimits:
    """What the card says of itself, in degrees Celsius; 0 = it does not say."""

    now: float
    slowdown: int
    shutdown: int


@dataclass(frozen=True, slots=True)
class Temperature:
    """to_slowdown, to_shutdown: degrees that the hottest part has left, where the card says so."""

    now: float
    celsius: int
    to_slowdown: int | None = None
    to_shutdown: int | None = None


@dataclass(frozen=True, slots=True)
class CardVitals:
    """What else a reading says of the card's health."""

    now: float
    vitals: Vitals


@dataclass(frozen=True, slots=True)
class XidSeen:
    """The driver reported an error with this number, of whatever process."""

    now: float
    code: int


@dataclass(frozen=True, slots=True)
class CardGone:
    """The driver has lost the card."""

    now: float
    text: str


@dataclass(frozen=True, slots=True)
class MemorySpilled:
    """Windows: how much of the host's memory stands in for the card's. MiB, of the card's used and total, too."""

    now: float
    shared: int
    used: int
    total: int


@dataclass(frozen=True, slots=True)
class SensorLost:
    """hung: the driver did not answer, rather than answered that there is nothing to read."""

    now: float
    text: str
    hung: bool = False


@dataclass(frozen=True, slots=True)
class MemoryShort:
    """The machine's memory, which a GPU of Apple's shares, is so short that programs wait for it."""

    now: float
    text: str


@dataclass(frozen=True, slots=True)
class MemoryHeld:
    """Other processes hold so much of the card's memory, in MiB. `holders`: who they are, for people; `pids`: all of them."""

    now: float
    memory: int
    holders: str
    pids: tuple[int, ...] = ()


Input = (
    Begin
    | RunnerSaid
    | RunnerGarbled
    | RunnerExited
    | SpawnFailed
    | CheckpointFound
    | SearchFailed
    | Tick
    | StopAsked
    | CardKnown
    | CardLimits
    | Temperature
    | CardVitals
    | XidSeen
    | CardGone
    | MemorySpilled
    | SensorLost
    | MemoryShort
    | MemoryHeld
)

# --- what it answers ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child; answered by RunnerSaid(Hello) or SpawnFailed. Never while another one lives.

    warm: whose frameworks it imports while it waits for its Job, or `none`; None: those that the run trains with.
    """

    attempt: int
    warm: str | None = None


@dataclass(frozen=True, slots=True)
class FindCheckpoint:
    """Verify checkpoints, newest first, in a thread; answered by CheckpointFound or SearchFailed."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Send the Job. micro_batch * accumulation is the effective batch, always."""

    attempt: int
    micro_batch: int
    accumulation: int
    gradient_checkpointing: bool | None
    checkpoint: Found | None
    prepared: PreparedRef | None
    held_out: PreparedRef | None = None
    smaller: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Give:
    """Send the Job of a stage other than the training."""

    stage: str
    job: StageJob


@dataclass(frozen=True, slots=True)
class Send:
    message: Stop | Save


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM, or CTRL_BREAK: the child saves at the next step boundary and stops."""


@dataclass(frozen=True, slots=True)
class DumpStacks:
    """SIGABRT: the child writes the stacks of all its threads to the log and dies. Nothing on Windows."""

    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the child and everything it started, now. Answered by RunnerExited."""

    reason: str


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Move a checkpoint aside; it is never deleted."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Emit:
    """An event of the policy's own; `driver` puts the wall clock's time into it."""

    event: Event


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over; no action follows. `found` or the result of Done tell what is kept."""

    status: str
    exit_code: ExitCode
    code: str | None = None
    message: str = ""
    suggestion: str = ""


Action = Spawn | FindCheckpoint | Assign | Give | Send | Terminate | DumpStacks | Kill | Quarantine | Emit | Finish
