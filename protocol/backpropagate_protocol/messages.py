"""Every message between parent and child: who sends it, when, and what the other side does.

Messages are frozen, tagged, array-like msgspec Structs in two closed unions. Array-like means: fields only grow at the
end, each new one with a default; no field ever changes its type. Times are seconds, memory is MiB.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from backpropagate_protocol.about_data import DataReady as DataReady
from backpropagate_protocol.about_data import DataReport as DataReport
from backpropagate_protocol.jobs import Job
from backpropagate_protocol.made import ExportRoute as ExportRoute
from backpropagate_protocol.made import Made as Made
from backpropagate_protocol.made import Pushed as Pushed
from backpropagate_protocol.made import Registered as Registered
from backpropagate_protocol.measured import Calibrated, Evaluation, Proof
from backpropagate_protocol.probes import ProbeReport

PROTOCOL_VERSION = 1


class Phase(StrEnum):
    """Where a child is. The parent has a deadline for each; a step that advanced is the only proof of life in `train`."""

    IMPORT = "import"
    VALIDATE = "validate"
    TOKENIZE = "tokenize"
    LOAD = "load"
    FIRST_STEP = "first_step"
    TRAIN = "train"
    CHECKPOINT = "checkpoint"
    FINISH = "finish"  # writing the result
    GENERATE = "generate"
    # The stages of an export; done and total count bytes where bytes are moved. Each message is a sign of progress.
    PREFLIGHT = "preflight"
    REFERENCE = "reference"
    MERGE = "merge"
    CONVERT = "convert"
    QUANTIZE = "quantize"
    PROVE = "prove"
    REGISTER = "register"
    PLACE = "place"
    PUSH = "push"
    COMBINE = "combine"
    EVALUATE = "evaluate"
    PLOT = "plot"
    FETCH = "fetch"
    TEARDOWN = "teardown"


class FaultKind(StrEnum):
    """What a fault is, as far as the child can tell. The parent alone decides what to do about it."""

    OOM = "oom"  # of the device
    HOST_OOM = "host_oom"
    CUDA = "cuda"  # the context is poisoned
    GPU_LOST = "gpu_lost"
    GPU_BUSY = "gpu_busy"
    DIVERGED = "diverged"
    DISK = "disk"
    USER = "user"  # data, configuration, dependency: no retry
    CHECKPOINT = "checkpoint"  # the checkpoint it was told to resume from cannot be used
    INTERNAL = "internal"  # any other exception


# --- parent → child -------------------------------------------------------------------------------------------------


class RunJob(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """Sent once, after Hello. The child does the Job and ends."""

    job: Job


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """Sent when the run must end early: a user's stop, heat, the owner gone. The child finishes the optimizer step it is
    in, commits a checkpoint if `save`, answers Stopped and exits 0. A child that is not training yet just answers."""

    reason: str
    save: bool = True


class Save(msgspec.Struct, frozen=True, array_like=True, tag="save"):
    """Sent when a checkpoint is wanted at the next step boundary. The child commits one and goes on."""


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Sent every few seconds. The child needs to do nothing: receiving it proves that the pipe is alive."""


class Say(msgspec.Struct, frozen=True, array_like=True, tag="say"):
    """Sent while a ChatJob is done: the whole conversation so far, the last turn being the user's. The child answers with
    Said pieces and a Turn. `messages`: (role, content) pairs, so that a fresh child can take a conversation up."""

    messages: tuple[tuple[str, str], ...]


# --- child → parent -------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The child's first message, before any framework is imported. The parent checks the version and sends RunJob, at
    once or later (a standby goes on importing meanwhile)."""

    protocol: int
    pid: int
    python: str
    packages: dict[str, str]  # distribution name → version, of what is installed and matters


class PhaseChanged(msgspec.Struct, frozen=True, array_like=True, tag="phase"):
    """Sent at the start of each phase, and again with more `done` while a long one advances. The parent restarts the
    phase's deadline. done/total count whatever the phase counts (rows, bytes); total 0 = unknown."""

    phase: Phase
    done: int = 0
    total: int = 0
    detail: str = ""


class Started(msgspec.Struct, frozen=True, array_like=True, tag="started"):
    """Sent once, when the model is on the device and the first step is next. The parent checks that micro-batch,
    accumulation and step are what it asked for (a runner that silently resumed otherwise is a fault)."""

    backend: str
    device: str
    step: int  # optimizer steps already done
    total_steps: int
    samples_seen: int
    micro_batch: int
    accumulation: int
    trainable_parameters: int
    parameters: int
    precision: str
    device_memory: int = 0
    gpu_uuid: str = ""
    notes: tuple[str, ...] = ()
    optimizer: str = ""
    model_revision: str = ""  # the commit of a hub's model


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """Sent after every optimizer step. Droppable: the newest replaces one that was not yet written. `order` is a CRC-32
    chained over the ids of all samples consumed so far, in order; equal order means equal samples in equal order."""

    step: int
    total_steps: int
    samples_seen: int
    order: int
    loss: float | None
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens: int = 0  # tokens consumed by this attempt
    step_seconds: float = 0.0
    epoch: float = 0.0
    memory_used: int = 0  # MiB, peak allocated on the device
    memory_reserved: int = 0
    extra: dict[str, float] = {}  # of a preference method: accuracy, margin, nll, …; finite, averaged over the step
    retries: int = 0  # allocations on the device that succeeded only after others were given back, in this attempt


class Evaluated(msgspec.Struct, frozen=True, array_like=True, tag="evaluated"):
    """Sent after the held-out rows were scored in the middle of a training. Never dropped. loss: mean, in nats per token
    that carries loss, or the method's own loss per sample."""

    step: int
    loss: float
    rows: int
    tokens: int
    seconds: float
    best: bool
    extra: dict[str, float] = {}


class Rehearsed(msgspec.Struct, frozen=True, array_like=True, tag="rehearsed"):
    """Sent after Started, if the Job asked for it: the longest samples went forward and backward, and nothing is otherwise
    than before. The parent remembers that they fit."""

    micro_batch: int
    tokens: int  # of the longest sample
    seconds: float
    memory: int = 0  # MiB, peak allocated on the device


class Halved(msgspec.Struct, frozen=True, array_like=True, tag="halved"):
    """Sent when forward or backward ran out of memory, the memory came back, and the same samples are next with a smaller
    micro-batch: one of those that the Job allows. No step is lost. The parent counts it, and respawns with that one."""

    step: int  # the step that is done anew; 0: a rehearsal
    micro_batch: int
    accumulation: int
    reason: str
    needed: int = 0  # as in Fault
    free: int = 0


class CheckpointSaved(msgspec.Struct, frozen=True, array_like=True, tag="checkpoint"):
    """Sent after a checkpoint is durable under its final name. Never dropped. The parent records it; respawns start from
    the newest that verifies."""

    name: str  # the folder's name inside checkpoints/
    step: int
    samples_seen: int
    order: int
    seconds: float
    bytes: int
    loss: float | None = None
    blocked: float = 0.0  # of the seconds, those that the training stood still for it


class CheckpointFailed(msgspec.Struct, frozen=True, array_like=True, tag="checkpoint_failed"):
    """Sent when a checkpoint could not be written (disk full, I/O error) and its partial folder is gone again. Training
    goes on; the parent decides when enough is enough."""

    step: int
    code: str
    message: str
    failures: int  # in a row


# MiB of the device. If others took so much since the training began, it is they who have to go, not half of the batch: less
# than that comes and goes with a desktop's windows.
NOTICEABLE = 512


class Notice(msgspec.Struct, frozen=True, array_like=True, tag="notice"):
    """Something the user should read once; level is info or warning. The parent shows and records it."""

    level: str
    text: str


class Fault(msgspec.Struct, frozen=True, array_like=True, tag="fault"):
    """The child's last word when it failed: classified here, judged by the parent, which kills what is left. Never
    dropped. `traceback` is redacted text."""

    kind: FaultKind
    code: str
    message: str
    suggestion: str = ""
    traceback: str = ""
    phase: Phase = Phase.IMPORT
    step: int = 0
    needed: int = 0  # MiB asked for, if the fault says so
    free: int = 0  # MiB free at that moment, if known
    others: int = 0  # MiB of the device that other processes have taken since the training began, if known


class Stopped(msgspec.Struct, frozen=True, array_like=True, tag="stopped"):
    """The answer to Stop: the child has saved what it was asked to and exits 0 now."""

    step: int
    saved: bool


class TrainResult(msgspec.Struct, frozen=True, array_like=True, tag="trained"):
    """Carried by Done after a TrainJob."""

    adapter: str  # absolute folder, PEFT layout (for mode=full: the model)
    step: int
    samples_seen: int
    order: int
    final_loss: float | None
    digest: str = ""  # over the result's weight files
    best_step: int = 0  # keep_best: the step whose weights these are; else 0
    stopped_early: bool = False


class Answers(msgspec.Struct, frozen=True, array_like=True, tag="answers"):
    """Carried by Done after a GenerateJob: one text for each prompt, in order."""

    texts: tuple[str, ...]


class Said(msgspec.Struct, frozen=True, array_like=True, tag="said"):
    """A piece of the answer to a Say, as it is made. Never dropped."""

    text: str


class Turn(msgspec.Struct, frozen=True, array_like=True, tag="turn"):
    """The answer to a Say is complete; `text` is all of it. An empty one at the start says that the model is ready."""

    text: str
    tokens: int = 0
    seconds: float = 0.0


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """The child's last word when all went well: the result is durable. It exits 0 within the teardown deadline; if it
    hangs there, it is killed and the result stands. An exit without Done is a failure, whatever the exit code."""

    result: (
        TrainResult
        | DataReport
        | Answers
        | ExportRoute
        | Made
        | Proof
        | Registered
        | Pushed
        | Evaluation
        | ProbeReport
        | Calibrated
    )


ToChild = RunJob | Stop | Save | Ping | Say
ToParent = (
    Hello
    | PhaseChanged
    | DataReady
    | Started
    | Progress
    | CheckpointSaved
    | CheckpointFailed
    | Notice
    | Fault
    | Stopped
    | Done
    | Said
    | Turn
    | Evaluated
    | Rehearsed
    | Halved
)
