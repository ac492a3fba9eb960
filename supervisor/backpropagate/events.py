"""What happened in a run, as lines of `events.jsonl`: the truth from which history, display and trackers are made.

Each event is one JSON object on one line: `event` (the tag), `time` (seconds since 1970, wall clock, for people only),
`run_id`, and its own fields. Only the supervisor appends. Progress lines are thinned in a long run; all others are whole.
Fields only grow, each new one with a default.
"""

from __future__ import annotations

import msgspec

from backpropagate.measured import Check, LinkScore
from backpropagate_protocol.spec import DataSpec


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    time: float
    run_id: str


class RunCreated(_Event, frozen=True, kw_only=True, tag="run_created"):
    """First line of the first supervisor; a resume appends RunResumed instead."""

    versions: dict[str, str] = {}


class RunResumed(_Event, frozen=True, kw_only=True, tag="run_resumed"):
    """A new supervisor took the run up again; `previous` is the status it found."""

    previous: str


class AttemptStarted(_Event, frozen=True, kw_only=True, tag="attempt_started"):
    """A child was spawned. `resume_step` 0 with no `checkpoint` means from the start."""

    attempt: int
    pid: int
    micro_batch: int
    accumulation: int
    checkpoint: str | None = None
    resume_step: int = 0
    versions: dict[str, str] = {}  # of the packages that the child will use
    gradient_checkpointing: bool | None = None  # None: the backend's own choice
    standby: bool = False  # it had been waiting, its frameworks imported


class PhaseEntered(_Event, frozen=True, kw_only=True, tag="phase"):
    phase: str
    done: int = 0
    total: int = 0
    detail: str = ""


class DataPrepared(_Event, frozen=True, kw_only=True, tag="data"):
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
    dropped: dict[str, int] = {}


class ModelReady(_Event, frozen=True, kw_only=True, tag="model_ready"):
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


class Step(_Event, frozen=True, kw_only=True, tag="step"):
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
    extra: dict[str, float] = {}


class Rehearsal(_Event, frozen=True, kw_only=True, tag="rehearsal"):
    """The longest samples were tried before step 1, and fit. `tokens`: of the longest; `memory`: MiB, at the peak."""

    micro_batch: int
    tokens: int
    seconds: float
    memory: int = 0


class BatchHalved(_Event, frozen=True, kw_only=True, tag="batch_halved"):
    """The memory ran out in forward or backward of `step`, and the same child did the same samples again in smaller
    micro-batches: no step was lost. `step` 0: in the rehearsal."""

    attempt: int
    step: int
    micro_batch: int
    accumulation: int
    reason: str
    needed: int = 0
    free: int = 0


class MemoryAwaited(_Event, frozen=True, kw_only=True, tag="memory_awaited"):
    """Other processes hold memory of the card without which the training does not fit: it goes on when that is free again,
    unchanged. `holders`: who they are, for people; `seconds`: how long is waited at most."""

    holders: str
    memory: int  # MiB
    seconds: float


class Evaluation(_Event, frozen=True, kw_only=True, tag="evaluation"):
    """The held-out rows were scored, from the child's Evaluated."""

    step: int
    loss: float
    rows: int
    tokens: int
    seconds: float
    best: bool
    extra: dict[str, float] = {}


class CheckpointCommitted(_Event, frozen=True, kw_only=True, tag="checkpoint"):
    name: str
    step: int
    samples_seen: int
    order: int
    seconds: float
    bytes: int
    loss: float | None = None
    blocked: float = 0.0  # of the seconds, those that the training stood still for it


class CheckpointMissed(_Event, frozen=True, kw_only=True, tag="checkpoint_failed"):
    step: int
    code: str
    message: str
    failures: int


class CheckpointQuarantined(_Event, frozen=True, kw_only=True, tag="checkpoint_quarantined"):
    name: str
    reason: str


class Noticed(_Event, frozen=True, kw_only=True, tag="notice"):
    level: str
    text: str


class FaultSeen(_Event, frozen=True, kw_only=True, tag="fault"):
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


class FaultRecorded(_Event, frozen=True, kw_only=True, tag="fault_recorded"):
    """A child that had failed is gone, and what it died of is written down. `exit_code`: as the operating system gave it,
    a signal's number negative; None: there is none. `record`: the file's path in the run directory, if the disk took it."""

    number: int
    attempt: int
    pid: int
    death: str
    exit_code: int | None = None
    record: str = ""
    stage: str = ""


class Recovering(_Event, frozen=True, kw_only=True, tag="recovering"):
    """What the supervisor does about a fault: respawn after `delay` seconds. `stage`: other than the training, and done anew."""

    reason: str
    delay: float
    micro_batch: int
    accumulation: int
    checkpoint: str | None = None
    resume_step: int = 0
    steps_lost: int = 0
    stage: str = ""


class Heat(_Event, frozen=True, kw_only=True, tag="heat"):
    """The GPU crossed a threshold; level: warning, pause, kill, cool."""

    level: str
    celsius: int


class CardTrouble(_Event, frozen=True, kw_only=True, tag="card_trouble"):
    """The GPU or its driver reported something of its health. source: xid, recovery, throttle, memory; `code`: the driver's
    number; deed: note, advise, restart, link, save, reset, reboot: what follows for the run."""

    source: str
    code: int
    text: str
    deed: str
    advice: str = ""


class StopRequested(_Event, frozen=True, kw_only=True, tag="stop_requested"):
    """reason: ctrl-c, sigterm, owner-gone, heat, disk, …; `seconds`: how long the child has before it is killed."""

    reason: str
    save: bool = True
    seconds: float = 0.0


class StageStarted(_Event, frozen=True, kw_only=True, tag="stage_started"):
    """A child was given a stage of the chain other than the training. Its progress follows as PhaseEntered."""

    stage: str
    attempt: int
    pid: int
    versions: dict[str, str] = {}  # of the packages that the child will use


class StageEnded(_Event, frozen=True, kw_only=True, tag="stage_ended"):
    """A stage is done: a later supervisor of this run does not do it again if `path` is still there."""

    stage: str
    path: str = ""
    bytes: int = 0
    digest: str = ""
    seconds: float = 0.0
    detail: str = ""  # one line for people
    notes: tuple[str, ...] = ()


class RouteFound(_Event, frozen=True, kw_only=True, tag="export_route"):
    """The preflight's answer: what the chain will do. Bytes are estimates of what will lie on the disk."""

    architecture: str
    parameters: int
    converter: str
    converter_folder: str
    type: str
    quantizer: str
    verifier: str
    bytes: int
    work_bytes: int
    free_bytes: int
    ollama_version: str = ""
    notes: tuple[str, ...] = ()


class ExportProved(_Event, frozen=True, kw_only=True, tag="export_proved"):
    """What was exported was compared with what was trained."""

    passed: bool
    verifier: str
    checks: tuple[Check, ...]
    prompts: int = 0
    positions: int = 0


class Exported(_Event, frozen=True, kw_only=True, tag="exported"):
    """The result is under its final name, with its report beside it."""

    path: str
    bytes: int
    format: str
    quantization: str | None = None
    digest: str = ""
    report: str = ""


class CampaignExtended(_Event, frozen=True, kw_only=True, tag="campaign_extended"):
    """`--append`: one more run for this campaign, after those that its spec and earlier such events name."""

    data: DataSpec
    name: str


class LinkStarted(_Event, frozen=True, kw_only=True, tag="link_started"):
    """A run of the campaign begins or goes on; `run_id` is the campaign's, `link_run` its own."""

    link: int  # from 1
    links: int
    link_run: str
    name: str
    offset: int = 0  # bytes of that run's own events from before: what follows them belongs to this supervisor


class LinkEnded(_Event, frozen=True, kw_only=True, tag="link_ended"):
    """A run of the campaign is trained; its adapter is kept."""

    link: int
    link_run: str
    name: str
    adapter: str
    digest: str = ""
    steps: int = 0
    final_loss: float | None = None
    recoveries: int = 0
    seconds: float = 0.0
    samples_seen: int = 0
    order: int = 0
    model_revision: str = ""  # the base's commit that was trained on: the runs after it use the same
    source_digest: str = ""  # of its own file as it was read; its rows are counted in its DataSpec


class LinkMerged(_Event, frozen=True, kw_only=True, tag="link_merged"):
    """What was trained up to this run is one adapter. `coefficient`: the newest run's weight in it."""

    link: int
    folder: str
    rule: str
    coefficient: float
    digest: str = ""
    chosen: bool = False  # of several rules, by their scores (`--merge auto`)


class LinkScored(_Event, frozen=True, kw_only=True, tag="link_scored"):
    """What the merged adapter, the newest run's own and the base say to the held-out rows of every task so far."""

    link: int
    scores: tuple[LinkScore, ...]
    names: tuple[str, ...] = ()  # of the tasks, by number


class RunEnded(_Event, frozen=True, kw_only=True, tag="run_ended"):
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
