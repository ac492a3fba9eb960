"""RunSpec: what the user asked for, complete and frozen. `spec.json` in the run directory is this, as JSON.

The parent resolves settings, presets and arguments into a RunSpec before anything starts; from then on neither side
reads a setting or an environment variable (but for where Ollama listens, which is no part of what is made), so that a resume or a replay sees exactly the same wishes. Fields only grow
at the end and always with a default, so that an old `spec.json` can be read for ever.
"""

from __future__ import annotations

import hashlib

import msgspec

SPEC_SCHEMA = 1


class PlannedFault(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fault that the runner brings about on purpose, for tests and for drills.

    kind      a name of `backpropagate_runner.drill.KINDS`, such as `oom`, `sigkill`, `hang`
    step      the optimizer step before which it happens; for faults while saving, the step of that checkpoint
    attempt   the attempt (1 = first child of the run) in which it happens; 0 = in every attempt
    stage     `train`, or another stage of the chain; there, step counts its signs of progress and attempt its children
    """

    kind: str
    step: int
    attempt: int = 1
    stage: str = "train"


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which base model, and how its weights are held."""

    name: str  # as the user said it: a preset, a hub id, a folder, `tiny`
    path: str  # what the runner loads: an absolute folder or a hub id
    revision: str | None = None
    trust_remote_code: bool = False
    load_in_4bit: bool | None = None  # None: yes on CUDA when bitsandbytes is there, no elsewhere
    dtype: str = "auto"  # auto: bf16 on CUDA (fp16 before Ampere), fp32 on the CPU


class Portion(msgspec.Struct, frozen=True, kw_only=True):
    """Some rows of a data set, to be mixed into another: `take` of the rows start … stop-1, chosen by `seed`."""

    source: str
    split: str = "train"
    format: str = "auto"
    start: int = 0
    stop: int | None = None  # None: to the end
    take: int
    seed: int = 0


class DataSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows, and how they become tokens."""

    source: str  # an absolute path, or a hub id
    split: str = "train"
    format: str = "auto"  # or a name of data_formats.FORMATS
    samples: int | None = None  # the first N rows of the file; None: all
    on_bad_row: str = "error"  # or: skip
    max_length: int = 2048  # tokens; longer rows are cut on the right
    train_on: str = "assistant"  # or: all
    packing: bool | None = False  # rows side by side instead of padded, no row seeing another; None: where it pays
    start: int = 0  # rows of the file that are passed over before the first of `samples`
    holdout: int = 0  # every holdout-th row of the file is held out of training; 0: none
    part: str = "train"  # or `held-out`: only the rows that `holdout` keeps out
    replay: tuple[Portion, ...] = ()  # earlier rows mixed in; never held-out ones
    method: str = "sft"  # what the rows are for: preference methods take pairs, kto labelled answers
    reasoning_trace: bool = False  # rows must think: <think>…</think> of trace_tokens, summed over the row
    trace_tokens: tuple[int, int] = (8, 8192)  # least and most
    dedup: str = "none"  # or: exact, near (MinHash over words)
    min_tokens: int = 0  # shorter rows are dropped; 0: none are
    max_tokens: int = 0  # longer rows are dropped instead of cut; 0: they are cut
    order: str = "random"  # or: curriculum (easy rows first, in chunks shuffled in themselves), given (as in the file)


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The adapter. `targets` is `all-linear` or module names."""

    preset: str = "quality"
    r: int = 256
    alpha: int = 512
    dropout: float = 0.0  # anything else costs the near-exactness of a halved batch (other masks), not of the samples
    targets: tuple[str, ...] = ("all-linear",)
    use_dora: bool = False
    use_rslora: bool = False
    init: str = "default"


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The optimisation. `effective_batch` is what never changes in a run, whatever happens to the micro-batch."""

    method: str = "sft"
    mode: str = "lora"
    steps: int | None = 100  # optimizer steps; None: `epochs` decides
    epochs: float | None = None
    effective_batch: int = 8  # samples in one optimizer step
    batch_size: int | None = None  # micro-batch to begin with; None: chosen from the card's memory
    learning_rate: float = 2e-4
    scheduler: str = "cosine"
    warmup_steps: int = 10
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    optim: str = "auto"
    seed: int = 42
    gradient_checkpointing: bool | None = None  # None: on for CUDA, off on the CPU
    logging_steps: int = 1
    beta: float | None = None  # of a preference method; None: the method's own default
    gamma: float | None = None  # simpo: the target margin
    desirable_weight: float = 1.0  # kto
    undesirable_weight: float = 1.0  # kto
    fp8: bool = False  # matrix products of the base in 8-bit floats, where the card has them
    attention: str = "auto"  # or: eager, sdpa, flash_attention_2, flash_attention_3
    compile: bool = False
    liger: bool | None = None  # Liger's kernels; None: where a probe shows that they work
    unsloth: bool | None = None  # None: no; its numbers differ, so it is taken where it is asked for
    group_by_length: bool = False  # rows of similar length share an optimizer step
    eval_steps: int | None = None  # evaluate on the held-out rows every N steps; None: ten times in the run
    early_stopping: int = 0  # evaluations in a row without a better loss until the training ends; 0: never
    keep_best: bool = False  # the result is the checkpoint with the best held-out loss, not the last
    ceiling: float = 4.0  # mode full: the most parameters, in 1e9


class SafetySpec(msgspec.Struct, frozen=True, kw_only=True):
    """How faults are met. Seconds and degrees Celsius."""

    oom_recovery: bool = True
    max_halvings: int = 3
    max_respawns: int = 3  # without a newly committed step between them
    save_steps: int | None = None  # None: adaptive
    save_seconds: float = 60.0  # adaptive: at most this much work at risk, where saving is cheap
    keep_checkpoints: int = 3
    grace: float = 30.0  # for a save, when asked to stop
    hang_floor: float = 30.0  # deadline of a step = max(5 x p99 of its own step times, this)
    first_step_deadline: float = 900.0
    load_deadline: float = 3600.0
    temperature_warn: int = 80
    temperature_pause: int = 90
    temperature_kill: int = 95
    wait_for_lock: bool = False
    standby: str = "auto"  # or: on, off; a second runner that has imported its frameworks and waits for a fault


class ExportSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of an adapter. Names of formats and quantizations are those of `export_formats`."""

    format: str  # lora, merged, gguf, lora-gguf, mlx
    quantization: str | None = None  # of a GGUF; None elsewhere
    destination: str  # absolute folder; made if missing
    name: str  # the file's or folder's name without quantization and suffix
    adapter: str | None = None  # absolute folder; None: the adapter that this run trains
    ollama_name: str | None = None  # register with Ollama under this name
    ollama_host: str = "http://127.0.0.1:11434"  # empty: what OLLAMA_HOST says to the supervisor that asks
    lmstudio: str | None = None  # absolute models folder of LM Studio to place the file in
    converter_folder: str | None = None  # of llama.cpp, for models that our own converter does not cover
    memory: int = 256  # MiB that merging and converting may take beside the interpreter
    prompts: tuple[str, ...] = ()  # for the proof, besides the ones that every export is tried with


class PushSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What goes to the hub. The token is never part of it: the child's hub client finds it where the user keeps it."""

    folder: str  # absolute: an adapter, a merged model, or a folder with GGUF files
    repo: str  # owner/name
    private: bool = True
    dry_run: bool = False
    revision: str = "main"
    message: str = "Upload with backpropagate"
    card: str = ""  # the README.md to go with it; empty: the folder's own, if it has one
    token_file: str | None = None  # absolute path of a file that holds the token
    files: tuple[str, ...] = ()  # names in the folder, and nothing else of it; empty: all that belongs to a model


class CampaignSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Several trainings, one after the other, merged into one adapter. `train.steps` counts those of one run.

    merge   slao, slao-product, ema, average, ties, dare, none, or auto (whichever scores best on held-out rows)
    """

    runs: tuple[DataSpec, ...]  # what each run trains on; `--append` adds to them (events CampaignExtended)
    names: tuple[str, ...]  # of the runs' tasks, for people
    merge: str = "slao"
    floor: float = 0.0  # the newest run's coefficient is never below it
    weight: float = 0.5  # ema: the newest run's coefficient
    density: float = 0.5  # ties, dare: the share of entries that stay
    evaluate: bool = True  # held-out rows of every task after every run
    eval_rows: int = 64  # at most, of each task
    early_stop: int = 0  # runs in a row without a better average held-out loss until the campaign ends; 0: never
    replay: float = 0.0  # share of earlier rows in a run, for those that are appended


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything needed to run it, and to run it again.

    kind `train`: trains, and then exports if `export` is given. kind `campaign`: a chain of trainings (run directories of their
    own, whose specs name it as `parent`) and merges, then the export of what was merged. kind `export`: only `model` and `export` matter. kind
    `push`: only `push` does.
    """

    schema: int = SPEC_SCHEMA
    run_id: str
    created: str  # ISO 8601, UTC
    backend: str = "auto"  # or: cuda, cpu, mlx, toy
    output: str  # absolute
    model: ModelSpec
    data: DataSpec
    lora: LoraSpec = LoraSpec()
    train: TrainSpec = TrainSpec()
    safety: SafetySpec = SafetySpec()
    runner_python: str | None = None  # another interpreter that has the frameworks
    detached: bool = False  # the run outlives whoever started it
    name: str | None = None  # a label of the user's
    verbose: bool = False
    faults: tuple[PlannedFault, ...] = ()
    kind: str = "train"  # or: export, push, campaign
    export: ExportSpec | None = None
    push: PushSpec | None = None
    campaign: CampaignSpec | None = None  # kind campaign: `data` is that of the first run
    parent: str | None = None  # the campaign that this training is a run of
    link: int = 0  # which of its runs, from 1
    init_adapter: str | None = None  # absolute folder of an adapter to begin from, in PEFT layout
    report_to: tuple[str, ...] = ()  # trackers: tensorboard, wandb, mlflow, trackio
    project: str = "backpropagate"  # of the trackers
    report_offline: bool = False  # W&B writes to the run directory only


def is_evaluated(spec: RunSpec) -> bool:
    """Whether held-out rows are scored while it trains. The runs of a campaign are scored by the campaign."""
    return spec.kind == "train" and spec.parent is None and spec.data.holdout > 0


def rail(spec: RunSpec) -> str:
    """The backend that a training child imports: Unsloth is one of its own, since it must be imported before all others."""
    return "unsloth" if spec.train.unsloth else spec.backend


# Left out of the digest at their defaults: checkpoints from before there were such choices stay resumable.
_LATER_OF_DATA = (
    "start", "holdout", "part", "replay", "method", "reasoning_trace", "trace_tokens", "dedup", "min_tokens", "max_tokens",
    "order",
)  # fmt: skip
_LATER_OF_TRAINING = (
    "beta", "gamma", "desirable_weight", "undesirable_weight", "fp8", "group_by_length", "early_stopping", "keep_best",
)  # fmt: skip
# How the same arithmetic is done, and how often something is said or looked at: may change from attempt to attempt.
_FREE = (
    "batch_size", "gradient_checkpointing", "logging_steps", "attention", "compile", "liger", "unsloth", "eval_steps", "ceiling",
)  # fmt: skip


def spec_digest(spec: RunSpec) -> str:
    """A digest of what must be equal in every attempt of a run: model, data, adapter, optimisation.

    Left out: the micro-batch to begin with, gradient checkpointing, kernels, logging and all of safety, which may change
    between attempts without changing a single sample.
    """
    train = _without(spec.train, _LATER_OF_TRAINING)
    data = _without(spec.data, _LATER_OF_DATA)
    for name in _FREE:
        train.pop(name, None)
    # As digests of the first release have them.
    train |= {"batch_size": None, "gradient_checkpointing": None, "logging_steps": 1}
    data["packing"] = data["packing"] is True
    fixed = msgspec.json.encode([spec.model, data, spec.lora, train], order="sorted")
    return hashlib.sha256(fixed).hexdigest()


def _without(part: DataSpec | TrainSpec, later: tuple[str, ...]) -> dict[str, object]:
    """The fields of `part`, without those of `later` that have their default."""
    fields: dict[str, object] = msgspec.to_builtins(part)
    usual = {f.name: msgspec.to_builtins(f.default) for f in msgspec.structs.fields(part) if f.name in later}
    return {name: value for name, value in fields.items() if name not in later or value != usual[name]}
