"""What happened in a run, as lines of `events.jsonl`: the truth from which history, display and trackers are made.

Each event is one JSON object on one line: `event` (the tag), `time` (seconds since 1970, wall clock, for people only),
`run_id`, and its own fields. Only the supervisor appends. Progress lines are thinned in a long run; all others are whole.
Fields only grow, each new one with a default.
"""

from __future__ import annotations

import msgspec

from backpropagate.campaign_events import CampaignExtended as CampaignExtended
from backpropagate.campaign_events import LinkEnded as LinkEnded
from backpropagate.campaign_events import LinkMerged as LinkMerged
from backpropagate.campaign_events import LinkScored as LinkScored
from backpropagate.campaign_events import LinkStarted as LinkStarted
from backpropagate.stage_events import Exported as Exported
from backpropagate.stage_events import ExportProved as ExportProved
from backpropagate.stage_events import RouteFound as RouteFound
from backpropagate.stage_events import StageEnded as StageEnded
from backpropagate.stage_events import StageStarted as StageStarted
from backpropagate.told import Told


class RunCreated(Told, frozen=True, kw_only=True, tag="run_created"):
    """First line of the first supervisor; a resume appends RunResumed instead."""

    versions: dict[str, str] = msgspec.field(default_factory=dict)


class RunResumed(Told, frozen=True, kw_only=True, tag="run_resumed"):
    """A new supervisor took the run up again; `previous` is the status it found."""

    previous: str


class AttemptStarted(Told, frozen=True, kw_only=True, tag="attempt_started"):
    """A child was spawned. `resume_step` 0 with no `checkpoint` means from the start."""

    attempt: int
    pid: int
    micro_batch: int
    accumulation: int
    checkpoint: str | None = None
    resume_step: int = 0
    versions: dict[str, str] = msgspec.field(default_factory=dict)  # of the packages that the child will use
    gradient_checkpointing: bool | None = None  # None: the backend's own choice
    standby: bool = False  # it had been waiting, its frameworks imported


class PhaseEntered(Told, frozen=True, kw_only=True, tag="phase"):
    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


class DataPrepared(Told, frozen=True, kw_only=True, tag="data"):
    path: str
    digest: str
    format: str
    rows: int
    skipped: int
    tokens: int
    trained_tokens: int
    truncated: int
    source_digest: str = ""
    held_out_path: str = ""
    held_out_digest: str = ""
    held_out_rows: int = 0
    dropped: dict[str, int] = msgspec.field(default_factory=dict)


class ModelReady(Told, frozen=True, kw_only=True, tag="model_ready"):
    """The child's Started message."""

    attempt: int
    backend: str
    device: str
    step: int
    total_steps: int
    micro_batch: int
    accumulation: int
    trainable_parameters: int
    parameters: int
    precision: str
    device_memory: int = 0
    gpu_uuid: str = ""
    notes: tuple[str, ...] = ()
    optimizer: str = ""


class Step(Told, frozen=True, kw_only=True, tag="step"):
    """One optimizer step, from the child's Progress."""

    step: int
    total_steps: int
    samples_seen: int
    order: int
    loss: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int = 0
    step_seconds: float = 0.0
    epoch: float = 0.0
    memory_used: int = 0
    memory_reserved: int = 0
    celsius: int = 0  # of the GPU, from the newest sensor reading; 0: unknown
    extra: dict[str, float] = msgspec.field(default_factory=dict)


class Rehearsal(Told, frozen=True, kw_only=True, tag="rehearsal"):
    """The longest samples were tried before step 1, and fit. `tokens`: of the longest; `memory`: MiB, at the peak."""

    micro_batch: int
    tokens: int
    seconds: float
    memory: int = 0


class BatchHalved(Told, frozen=True, kw_only=True, tag="batch_halved"):
    """The memory ran out in forward or backward of `step`, and the same child did the same samples again in smaller
    micro-batches: no step was lost. `step` 0: in the rehearsal."""

    attempt: int
    step: int
    micro_batch: int
    accumulation: int
    reason: str
    needed: int = 0
    free: int = 0


class MemoryAwaited(Told, frozen=True, kw_only=True, tag="memory_awaited"):
    """Other processes hold memory of the card without which the training does not fit: it goes on when that is free again,
    unchanged. `holders`: who they are, for people; `seconds`: how long is waited at most."""

    holders: str
    memory: int  # MiB
    seconds: float


class Evaluation(Told, frozen=True, kw_only=True, tag="evaluation"):
    """The held-out rows were scored, from the child's Evaluated."""

    step: int
    loss: float
    rows: int
    tokens: int
    seconds: float
    best: bool
    extra: dict[str, float] = msgspec.field(default_factory=dict)


class CheckpointCommitted(Told, frozen=True, kw_only=True, tag="checkpoint"):
    name: str
    step: int
    samples_seen: int
    order: int
    seconds: float
    bytes: int
    loss: float | None = None
    blocked: float = 0.0  # of the seconds, those that the training stood still for it


class CheckpointMissed(Told, frozen=True, kw_only=True, tag="checkpoint_failed"):
    step: int
    code: str
    message: str
    failures: int


class CheckpointQuarantined(Told, frozen=True, kw_only=True, tag="checkpoint_quarantined"):
    name: str
    reason: str


class Noticed(Told, frozen=True, kw_only=True, tag="notice"):
    level: str
    text: str


class FaultSeen(Told, frozen=True, kw_only=True, tag="fault"):
    """A child failed or died. `death` decodes the exit code or signal, if it is known yet. `stage`: other than the training."""

    attempt: int
    kind: str  # a FaultKind, or: hang, died, overheat, protocol
    code: str
    message: str
    step: int = 0
    phase: str = ""
    death: str = ""
    traceback: str = ""
    needed: int = 0
    free: int = 0
    stage: str = ""


class FaultRecorded(Told, frozen=True, kw_only=True, tag="fault_recorded"):
    """A child that had failed is gone, and what it died of is written down. `exit_code`: as the operating system gave it,
    a signal's number negative; None: there is none. `record`: the file's path in the run directory, if the disk took it.
    The next child does not wait for that: it may have begun before this is told."""

    number: int
    attempt: int
    pid: int
    death: str
    exit_code: int | None = None
    record: str = ""
    stage: str = ""


class Recovering(Told, frozen=True, kw_only=True, tag="recovering"):
    """What the supervisor does about a fault: respawn after `delay` seconds. `stage`: other than the training, and done anew."""

    reason: str
    delay: float
    micro_batch: int
    accumulation: int
    checkpoint: str | None = None
    resume_step: int = 0
    steps_lost: int = 0
    stage: str = ""


class Heat(Told, frozen=True, kw_only=True, tag="heat"):
    """The GPU crossed a threshold; level: warning, pause, kill, cool."""

    level: str
    celsius: int


class CardTrouble(Told, frozen=True, kw_only=True, tag="card_trouble"):
    """The GPU or its driver reported something of its health. source: xid, recovery, throttle, memory; `code`: the driver's
    number; deed: note, advise, restart, link, save, reset, reboot: what follows for the run."""

    source: str
    code: int
    text: str
    deed: str
    advice: str = ""


class StopRequested(Told, frozen=True, kw_only=True, tag="stop_requested"):
    """reason: ctrl-c, sigterm, owner-gone, heat, disk, …; `seconds`: how long the child has before it is killed."""

    reason: str
    save: bool = True
    seconds: float = 0.0


class RunEnded(Told, frozen=True, kw_only=True, tag="run_ended"):
    """Last line of a supervisor. status: completed, failed, interrupted, partial."""

    status: str
    exit_code: int
    step: int
    total_steps: int
    code: str | None = None
    message: str = ""
    suggestion: str = ""
    adapter: str | None = None
    final_loss: float | None = None
    samples_seen: int = 0
    order: int = 0
    seconds: float = 0.0
    export: str | None = None  # the path of what was exported
    ollama: str | None = None  # the name it was registered under
    url: str | None = None  # where it was pushed to
    kind: str = "train"  # what the run is for, as in its spec
    best_step: int = 0  # the step whose weights the result has, if its held-out loss chose it
    stopped_early: bool = False  # its held-out loss said that it is enough
    earlier: float = 0.0  # seconds of the run's supervisors before this one


Event = (
    RunCreated
    | RunResumed
    | AttemptStarted
    | PhaseEntered
    | DataPrepared
    | ModelReady
    | Step
    | Rehearsal
    | BatchHalved
    | MemoryAwaited
    | Evaluation
    | CheckpointCommitted
    | CheckpointMissed
    | CheckpointQuarantined
    | Noticed
    | FaultSeen
    | FaultRecorded
    | Recovering
    | Heat
    | CardTrouble
    | StopRequested
    | StageStarted
    | StageEnded
    | RouteFound
    | ExportProved
    | Exported
    | CampaignExtended
    | LinkStarted
    | LinkEnded
    | LinkMerged
    | LinkScored
    | RunEnded
)
