"""Job: what one child is asked to do. Exactly one Job per child, sent after its Hello.

A Job holds all that the child needs: it reads no setting, no environment variable of ours, and no file that the Job does
not name.
"""

from __future__ import annotations

import msgspec

from backpropagate_protocol.spec import DataSpec, ExportSpec, ModelSpec, PlannedFault, PushSpec, RunSpec


class PreparedRef(msgspec.Struct, frozen=True):
    """A prepared data set on disk (see `prepared.py`): its folder and the digest in its manifest."""

    path: str
    digest: str


class TrainJob(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """Train from `resume_from` (or from the start) to the end of the spec.

    micro_batch * accumulation == spec.train.effective_batch, always.
    prepared is None in the first attempt: the child validates and tokenises, and says DataReady; every later attempt
    gets that answer back and must not see other data.
    """

    spec: RunSpec
    run_dir: str
    attempt: int  # 1, 2, …
    micro_batch: int
    accumulation: int
    gradient_checkpointing: bool | None
    resume_from: str | None = None  # a verified checkpoint folder
    prepared: PreparedRef | None = None
    held_out: PreparedRef | None = (
        None  # the rows that `holdout` keeps out, if the run is evaluated; made with `prepared`
    )
    kernels: tuple[
        str, ...
    ] = ()  # what a probe found to work in this interpreter, on this card: names of `probes.PROBES`
    smaller: tuple[int, ...] = ()  # micro-batches that the child may go down to by itself, in this order: see Halved
    rehearse: int | None = (
        None  # tokens of a sample that is known to fit: a longer one is tried before step 1; None: none is
    )
    log: str | None = None  # a file in which standard error goes on; None: it stays where it is


class ValidateJob(msgspec.Struct, frozen=True, kw_only=True, tag="validate"):
    """Read the data, report, train nothing. Needs no framework (parquet and hub ids excepted)."""

    data: DataSpec
    max_errors: int = 10
    model: ModelSpec | None = None  # whose tokenizer counts; None: rows are only read, and no framework is needed
    backend: str = "auto"
    samples: int = 0  # rows to be shown token by token, with what carries loss


class GenerateJob(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Answer each prompt (one user turn, the model's own template), greedily unless temperature > 0."""

    model: ModelSpec
    adapter: str | None
    prompts: tuple[str, ...]
    backend: str = "auto"
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


class ChatJob(msgspec.Struct, frozen=True, kw_only=True, tag="chat"):
    """Hold a conversation: answer each Say until the parent goes away. Exactly one of `model` and `gguf` is given."""

    model: ModelSpec | None = None
    adapter: str | None = None
    gguf: str | None = None  # absolute path, answered by llama.cpp
    backend: str = "auto"
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0


class ProbeJob(msgspec.Struct, frozen=True, kw_only=True, tag="probe"):
    """Try one thing out: see `probes.py`. Answered by ProbeReport; what does not work is an answer, not an error."""

    name: str


class CalibrateJob(msgspec.Struct, frozen=True, kw_only=True, tag="calibrate"):
    """Train `steps` real optimizer steps on the longest rows, of two micro-batches each, and say what they took. Nothing of it is
    kept but the prepared data, in the output folder's cache, where the training itself finds them. Answered by Calibrated."""

    spec: RunSpec
    micro_batch: int
    scratch: str  # an empty folder, the parent's to remove
    steps: int = 10
    kernels: tuple[str, ...] = ()  # as in TrainJob


# --- the stages of an export ----------------------------------------------------------------------------------------
# Each writes exactly one output under its final name when it is complete (before: beside it, with `.partial`), leaves its
# inputs alone, and may be run again over what an earlier try left. `faults` are the planned ones of this stage, `attempt`
# its child's number.


class _StageJob(msgspec.Struct, frozen=True, kw_only=True):
    faults: tuple[PlannedFault, ...] = ()
    attempt: int = 1


class PreflightJob(_StageJob, frozen=True, kw_only=True, tag="preflight"):
    """Find out whether the whole chain can work, and by which route, before any weight is read. Answered by ExportRoute.

    Raises a coded error for the first thing that is missing. For a hub's model only its small files are fetched.
    """

    model: ModelSpec
    export: ExportSpec
    adapter: str | None  # None: it will be trained by this run
    work: str  # the folder in which the stages will work (its disk counts)
    dora: bool = False  # what the adapter to be trained will be
    full: bool = False


class ReferenceJob(_StageJob, frozen=True, kw_only=True, tag="reference"):
    """What the trained model says: token ids, logits and greedy answers for the proof's prompts, written to `out`.

    Held in the precision that is exported, never in 4 bit. `adapter` None: the model as it is.
    """

    model: ModelSpec
    adapter: str | None
    prompts: tuple[str, ...]
    out: str  # a folder, see `reference.py`
    backend: str = "auto"
    moment: str = ""  # ISO 8601: what a template that writes the date takes for now; empty: now


class MergeJob(_StageJob, frozen=True, kw_only=True, tag="merge"):
    """Base and adapter to a merged model in transformers' layout, shard by shard, on the CPU, within `memory` MiB."""

    model: ModelSpec
    adapter: str
    out: str  # a folder
    memory: int
    layout: str = "transformers"  # or mlx: config.json also says what mlx-lm looks for


class FuseJob(_StageJob, frozen=True, kw_only=True, tag="fuse"):
    """A base that MLX quantised, and an adapter, to a merged model in full precision, by MLX, held in memory as a whole."""

    model: ModelSpec
    adapter: str
    out: str  # a folder


class ConvertJob(_StageJob, frozen=True, kw_only=True, tag="convert"):
    """Base and adapter (None: the base alone) to one GGUF, in one pass. Within `memory` MiB where the converter is ours."""

    model: ModelSpec
    adapter: str | None
    out: str  # a file
    type: str = msgspec.field(name="kind")  # f32, f16, bf16, q8_0; on the wire, `type` is the tag
    name: str  # general.name
    converter: str = "own"  # or: official
    converter_folder: str | None = None
    memory: int


class ConvertAdapterJob(_StageJob, frozen=True, kw_only=True, tag="convert_adapter"):
    """The adapter alone to a GGUF adapter, each module's scale folded in."""

    model: ModelSpec
    adapter: str
    out: str  # a file
    name: str


class QuantizeJob(_StageJob, frozen=True, kw_only=True, tag="quantize"):
    """One GGUF to another, by llama.cpp."""

    source: str
    out: str
    quantization: str
    threads: int = 0  # 0: as many as there are cores


class ProveJob(_StageJob, frozen=True, kw_only=True, tag="prove"):
    """Compare what was exported with the reference. Answered by Proof; a failed one is an answer, not an error.

    target: a GGUF file, or a folder with another reference. An adapter alone says nothing: it has no `reference`.
    """

    reference: str
    target: str
    kind: str  # gguf, lora-gguf, merged; fused: the same, of a base whose tensors only MLX can read
    quantization: str
    model: ModelSpec
    adapter: str | None
    verifier: str  # llama: run it; weights: read it
    memory: int = 256


class RegisterJob(_StageJob, frozen=True, kw_only=True, tag="register"):
    """Give a GGUF to Ollama under a name. `quantize`: Ollama itself quantizes to it on the way in."""

    gguf: str
    name: str
    host: str
    quantize: str | None = None


class PlaceJob(_StageJob, frozen=True, kw_only=True, tag="place"):
    """Give a file or folder a second place: a link where the disk allows it, else a copy; whole or not at all."""

    source: str
    out: str


class PushJob(_StageJob, frozen=True, kw_only=True, tag="push"):
    """Upload a folder to the hub."""

    push: PushSpec


class FetchConverterJob(_StageJob, frozen=True, kw_only=True, tag="fetch_converter"):
    """Fill the user's cache with llama.cpp's own converter, from its pinned source package. Answered by Made."""

    folder: str | None = None  # None: the user's cache


class CombineJob(_StageJob, frozen=True, kw_only=True, tag="combine"):
    """Merge the adapters of a campaign's runs into one (see the runner's combine/). Needs no framework.

    adapters: the fine-tuned adapter of every run so far, in order. previous: the folder of the CombineJob before this one, for
    rules that go on from a state; None: from the beginning. `out` is a folder with `merged/` (the adapter to use), `next/` (the
    adapter that the next run begins from), the state, and combine.json (digests of every input, every coefficient).
    """

    adapters: tuple[str, ...]
    out: str
    rule: str
    previous: str | None = None
    floor: float = 0.0
    weight: float = 0.5
    density: float = 0.5
    seed: int = 0
    memory: int = 256


class Candidate(msgspec.Struct, frozen=True):
    """An adapter that is to be scored; `adapter` None: the base model."""

    name: str
    adapter: str | None


class EvaluateJob(_StageJob, frozen=True, kw_only=True, tag="evaluate"):
    """Score candidates on the held-out rows of tasks: mean loss in nats per token that carries loss, and the share of such
    tokens that are the likeliest. Answered by Evaluation."""

    model: ModelSpec
    candidates: tuple[Candidate, ...]
    tasks: tuple[DataSpec, ...]  # part `held-out`, samples = the most rows to read
    cache: str  # for prepared data
    backend: str = "auto"
    batch_size: int = 4


class PlotJob(_StageJob, frozen=True, kw_only=True, tag="plot"):
    """A campaign's report (campaign.json) as pictures."""

    report: str
    out: tuple[str, ...]  # files ending in .svg or .png


StageJob = (
    PreflightJob
    | ReferenceJob
    | MergeJob
    | FuseJob
    | ConvertJob
    | ConvertAdapterJob
    | QuantizeJob
    | ProveJob
    | RegisterJob
    | PlaceJob
    | PushJob
    | CombineJob
    | EvaluateJob
    | PlotJob
    | FetchConverterJob
)
Job = (
    TrainJob
    | ValidateJob
    | GenerateJob
    | ChatJob
    | ProbeJob
    | CalibrateJob
    | PreflightJob
    | ReferenceJob
    | MergeJob
    | FuseJob
    | ConvertJob
    | ConvertAdapterJob
    | QuantizeJob
    | ProveJob
    | RegisterJob
    | PlaceJob
    | PushJob
    | CombineJob
    | EvaluateJob
    | PlotJob
    | FetchConverterJob
)
