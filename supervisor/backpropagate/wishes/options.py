"""The one table of everything a user can set: its name, type, default, flag, environment variable and help.

Flags of `backprop train`, arguments of `Trainer`, environment variables, `.env`, `backpropagate.toml` and the generated
pages are all made from `OPTIONS`. What is not in here cannot be set. A default of None means that something else decides
(the help says what).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from backpropagate_protocol import data_formats, export_formats
from backpropagate_protocol.ollama_names import DEFAULT_HOST

Value = str | int | float | bool | tuple[str, ...] | None
Kind = Literal["str", "int", "float", "bool", "list"]

PREFIX = "BACKPROPAGATE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One thing that can be set.

    key        dotted name: group and field; at the top level, only a field
    argument   the keyword of `Trainer` (or of `Trainer.train`) and the name behind the flag
    flags      as the command line declares them; empty: only by variable, file or Python
    aliases    other spellings of the flag (those of Hugging Face and TRL), accepted and not shown
    variables  other names of the field in the environment, without the prefix
    foreign    variables of other programs that say the same, with their full names; read after ours
    any_case   choices are understood in capitals, too
    least      smallest value accepted; `above` is the same with the bound itself left out
    later      values that this release cannot serve yet; asking for one is an error
    fixed      why it can only have its default; asking for another value is an error
    """

    key: str
    kind: Kind
    default: Value
    help: str
    argument: str
    flags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    any_case: bool = False
    choices: tuple[str, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    later: tuple[Value, ...] = ()
    fixed: str = ""
    hidden: bool = False

    @property
    def group(self) -> str:
        return self.key.partition(".")[0] if "." in self.key else ""

    @property
    def flag(self) -> str:
        """As it is written on the command line; the key where it has none there."""
        return self.flags[-1].split("/")[0] if self.flags else self.key

    @property
    def variable(self) -> str:
        """`training.learning_rate` → `BACKPROPAGATE_TRAINING__LEARNING_RATE`."""
        return PREFIX + self.key.replace(".", "__").upper()

    @property
    def all_variables(self) -> tuple[str, ...]:
        return (self.variable, *(PREFIX + name for name in self.variables))

    @property
    def shown_choices(self) -> tuple[str, ...]:
        return tuple(choice for choice in self.choices if choice not in _HIDDEN_CHOICES)

    @property
    def accepted(self) -> str:
        """What a value may be, in words."""
        if self.fixed:
            return f"{self.default} only"
        if self.choices:
            return "one of " + ", ".join(self.shown_choices)
        words = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "list": "names separated by commas"}[self.kind]  # fmt: skip
        if self.above is not None:
            words += f" above {self.above:g}"
        if self.least is not None:
            words += f" of at least {self.least:g}"
        if self.most is not None:
            words += f" and at most {self.most:g}"
        return words

    @property
    def accepted_now(self) -> str:
        """The same, without what only a later release accepts."""
        if self.fixed:
            return str(self.default)
        if self.later and self.kind == "bool":
            return "false"
        now = [choice for choice in self.shown_choices if choice not in self.later]
        return now[0] if len(now) == 1 else "one of " + ", ".join(now) if now else self.accepted


# toy learns one number without any framework: for tests and drills. The others are second names.
_HIDDEN_CHOICES = ("toy", *data_formats.FORMAT_ALIASES)

OPTIONS: tuple[Option, ...] = (
    # model
    Option(key="model.name", kind="str", default="Qwen/Qwen2.5-7B-Instruct", argument="model", flags=("-m", "--model"), aliases=("--model-name-or-path", "--model-name"), help="Base model: a hub id, a folder, a preset (see `backprop info`), or `tiny`, the bundled one."),
    Option(key="model.revision", kind="str", default=None, argument="revision", flags=("--revision",), aliases=("--model-revision",), help="Branch, tag or commit of a hub model. Default: its main branch."),
    Option(key="model.trust_remote_code", kind="bool", default=False, argument="trust_remote_code", flags=("--trust-remote-code",), help="Run Python code that comes with the model. Only for models that you trust."),
    Option(key="model.load_in_4bit", kind="bool", default=None, argument="load_in_4bit", flags=("--load-in-4bit/--no-4bit",), aliases=("--no-load-in-4bit",), help="Hold the base model in 4-bit weights (QLoRA). Default: yes on CUDA with bitsandbytes, no elsewhere."),
    Option(key="model.dtype", kind="str", default="auto", argument="dtype", flags=("--dtype",), aliases=("--torch-dtype",), choices=("auto", "bf16", "fp16", "fp32", "bfloat16", "float16", "float32"), help="Number format of the base model. auto: bf16 on CUDA (fp16 on cards before Ampere), fp32 on the CPU."),
    Option(key="model.max_seq_length", kind="int", default=2048, argument="max_length", flags=("--max-length",), aliases=("--max-seq-length",), variables=("MODEL__MAX_LENGTH",), least=8, help="Tokens in a row; longer rows are cut on the right."),
    # lora
    Option(key="lora.preset", kind="str", default="quality", argument="lora_preset", flags=("--lora-preset",), choices=("quality", "fast"), help="quality: r 256 on all linear layers. fast: r 16 on q and v."),
    Option(key="lora.r", kind="int", default=None, argument="lora_r", flags=("--lora-r",), aliases=("--lora-rank",), least=1, help="Rank of the adapter. Default: the preset's."),
    Option(key="lora.alpha", kind="int", default=None, argument="lora_alpha", flags=("--lora-alpha",), variables=("LORA__LORA_ALPHA",), least=1, help="Scale of the adapter. Default: twice the rank."),
    Option(key="lora.dropout", kind="float", default=0.0, argument="lora_dropout", flags=("--lora-dropout",), variables=("LORA__LORA_DROPOUT",), least=0, most=0.99, help="Dropout on the adapter's input."),
    Option(key="lora.target_modules", kind="list", default=None, argument="target_modules", flags=("--target-modules",), aliases=("--lora-target-modules",), help="`all-linear`, or module names separated by commas. Default: the preset's."),
    Option(key="lora.use_dora", kind="bool", default=False, argument="use_dora", flags=("--use-dora",), help="Weight-decomposed LoRA: slower, often better at small ranks."),
    Option(key="lora.use_rslora", kind="bool", default=False, argument="use_rslora", flags=("--use-rslora",), help="Rank-stabilised scaling (alpha divided by the root of r)."),
    Option(key="lora.init_lora_weights", kind="str", default="default", argument="init_lora_weights", flags=("--init-lora-weights",), choices=("default", "gaussian", "pissa", "loftq"), later=("pissa", "loftq"), help="How the adapter starts; this release knows default and gaussian."),
    # data
    Option(key="data.source", kind="str", default=None, argument="data", flags=("-d", "--data"), aliases=("--dataset", "--dataset-name"), variables=("DATA__DATASET_NAME",), help=f"Training data: a file ({data_formats.accepted()}; each also as {data_formats.PACKED}), a hub id, or `sample`, the five bundled rows."),
    Option(key="data.split", kind="str", default="train", argument="split", flags=("--split",), aliases=("--dataset-train-split",), variables=("DATA__DATASET_SPLIT",), help="Split of a hub data set."),
    Option(key="data.format", kind="str", default="auto", argument="format", flags=("--format",), choices=("auto", *data_formats.FORMATS, *data_formats.FORMAT_ALIASES), help="Shape of the rows; auto looks at them."),
    Option(key="data.max_samples", kind="int", default=None, argument="samples", flags=("--samples",), aliases=("--max-samples", "--max-train-samples"), least=1, help="Use only the first N rows. Default: all."),
    Option(key="data.on_bad_row", kind="str", default="error", argument="on_bad_row", flags=("--on-bad-row",), choices=("error", "skip"), help="error: stop before the model is loaded. skip: leave bad rows out and count them."),
    Option(key="data.train_on", kind="str", default="assistant", argument="train_on", flags=("--train-on",), choices=("assistant", "all"), help="Which tokens carry loss."),
    Option(key="data.packing", kind="bool", default=None, argument="packing", flags=("--packing/--no-packing",), help="Put the rows of a batch side by side instead of padding them; no row sees another, and no sample changes. Default: where it pays."),
    Option(key="data.reasoning_trace", kind="bool", default=False, argument="reasoning_trace", flags=("--reasoning-trace/--no-reasoning-trace",), help="Train on reasoning: <think>…</think> stays in the answers and is learnt; rows without a trace in the token band are dropped and counted. Default length: 8192."),
    Option(key="data.min_trace_tokens", kind="int", default=8, argument="min_trace_tokens", flags=("--min-trace-tokens",), least=0, help="Shorter traces are dropped."),
    Option(key="data.max_trace_tokens", kind="int", default=8192, argument="max_trace_tokens", flags=("--max-trace-tokens",), least=1, help="Longer traces are dropped."),
    Option(key="data.dedup", kind="str", default="none", argument="dedup", flags=("--dedup",), choices=("none", "exact", "near"), help="Drop rows that are there twice: exact compares the text, near also finds small changes (MinHash)."),
    Option(key="data.min_tokens", kind="int", default=0, argument="min_tokens", flags=("--min-tokens",), least=0, help="Drop rows with fewer tokens."),
    Option(key="data.max_tokens", kind="int", default=0, argument="max_tokens", flags=("--max-tokens",), least=0, help="Drop rows with more tokens instead of cutting them; 0: cut at --max-length."),
    Option(key="data.order", kind="str", default="random", argument="order", flags=("--order",), choices=("random", "curriculum", "given"), help="random: shuffled by --seed. curriculum: easy rows first. given: as they stand in the file."),
    Option(key="data.eval_split", kind="float", default=0.0, argument="eval_split", flags=("--eval-split",), aliases=("--val-split", "--validation-split"), least=0, most=0.5, help="Share of the rows that is held out and scored during training."),
    # training
    Option(key="training.preset", kind="str", default=None, argument="preset", flags=("--preset",), choices=("fast-3b", "fast", "balanced", "quality"), help="Starting point for rank, effective batch, learning rate and steps."),
    Option(key="training.method", kind="str", default="sft", argument="method", flags=("--method",), choices=("sft", "orpo", "simpo", "dpo", "kto"), help="Training objective. orpo, simpo and dpo take rows {prompt, chosen, rejected}; kto takes {prompt, completion, label}."),
    Option(key="training.orpo_beta", kind="float", default=0.1, argument="orpo_beta", flags=("--orpo-beta",), above=0, help="orpo: weight of the odds ratio."),
    Option(key="training.simpo_beta", kind="float", default=2.0, argument="simpo_beta", flags=("--simpo-beta",), above=0, help="simpo: scale of the rewards."),
    Option(key="training.simpo_gamma", kind="float", default=1.0, argument="simpo_gamma", flags=("--simpo-gamma",), least=0, help="simpo: target margin."),
    Option(key="training.dpo_beta", kind="float", default=0.1, argument="dpo_beta", flags=("--dpo-beta",), above=0, help="dpo: how strongly the model is held to its start."),
    Option(key="training.kto_beta", kind="float", default=0.1, argument="kto_beta", flags=("--kto-beta",), above=0, help="kto: how strongly the model is held to its start."),
    Option(key="training.kto_desirable_weight", kind="float", default=1.0, argument="kto_desirable_weight", flags=("--kto-desirable-weight",), above=0, help="kto: weight of good answers."),
    Option(key="training.kto_undesirable_weight", kind="float", default=1.0, argument="kto_undesirable_weight", flags=("--kto-undesirable-weight",), above=0, help="kto: weight of bad answers."),
    Option(key="training.mode", kind="str", default="lora", argument="mode", flags=("--mode",), choices=("lora", "full"), help="lora trains an adapter; full trains every weight (sft, models of at most 4 B parameters)."),
    Option(key="training.full_ft_ceiling", kind="float", default=4.0, argument="full_ft_ceiling_billions", flags=("--full-ft-ceiling-billions",), above=0, help="mode full: the most parameters, in billions."),
    Option(key="training.fp8", kind="bool", default=False, argument="fp8", flags=("--fp8/--no-fp8",), help="Hold and multiply the frozen base in 8-bit floats (Ada, Hopper, Blackwell; sft with an adapter)."),
    Option(key="training.attention", kind="str", default="auto", argument="attention", flags=("--attention",), aliases=("--attn-implementation",), choices=("auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"), help="How attention is computed. auto: the fastest that a probe found to work."),
    Option(key="training.compile", kind="bool", default=False, argument="compile", flags=("--compile/--no-compile",), aliases=("--torch-compile",), help="torch.compile the model: a slow first step, faster ones after it."),
    Option(key="training.liger", kind="bool", default=None, argument="liger", flags=("--liger/--no-liger",), aliases=("--use-liger-kernel",), help="Liger's kernels. Default: on CUDA, where they are installed and a probe shows that they work."),
    Option(key="training.unsloth", kind="bool", default=None, argument="unsloth", flags=("--unsloth/--no-unsloth",), aliases=("--use-unsloth",), help="Train through Unsloth. Default: no; `backprop setup --unsloth` makes it an environment of its own."),
    Option(key="training.backend", kind="str", default="auto", argument="backend", flags=("--backend",), choices=("auto", "cuda", "cpu", "mlx", "toy"), help="Where to train; auto takes the GPU if there is one."),
    Option(key="training.max_steps", kind="int", default=None, argument="steps", flags=("--steps",), aliases=("--max-steps", "--steps-per-run"), variables=("TRAINING__STEPS", "MULTIRUN__STEPS_PER_RUN"), least=1, help="Optimizer steps. Default: 100, unless --epochs or a preset says otherwise."),
    Option(key="training.epochs", kind="float", default=None, argument="epochs", flags=("--epochs",), aliases=("--num-train-epochs", "--num-epochs"), variables=("TRAINING__NUM_TRAIN_EPOCHS",), above=0, help="Passes over the data, instead of --steps."),
    Option(key="training.batch_size", kind="int", default=None, argument="batch_size", flags=("--batch-size",), aliases=("--per-device-train-batch-size", "--per-device-batch-size"), variables=("TRAINING__PER_DEVICE_TRAIN_BATCH_SIZE",), least=1, help="Rows on the device at once, to begin with. Default: chosen from the card's memory."),
    Option(key="training.gradient_accumulation", kind="int", default=None, argument="gradient_accumulation", flags=("--gradient-accumulation",), aliases=("--gradient-accumulation-steps",), variables=("TRAINING__GRADIENT_ACCUMULATION_STEPS",), least=1, help="Batches in one optimizer step. Default: so many that the effective batch is 8 (or the preset's)."),
    Option(key="training.learning_rate", kind="float", default=2e-4, argument="learning_rate", flags=("--lr", "--learning-rate"), above=0, most=10, help="Peak learning rate."),
    Option(key="training.scheduler", kind="str", default="cosine", argument="scheduler", flags=("--scheduler",), aliases=("--lr-scheduler-type", "--lr-scheduler"), variables=("TRAINING__LR_SCHEDULER_TYPE",), choices=("cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"), help="How the learning rate moves."),
    Option(key="training.warmup_steps", kind="int", default=10, argument="warmup_steps", flags=("--warmup-steps",), least=0, help="Steps until the learning rate has its peak. Of a training of no more steps than the default, a tenth."),
    Option(key="training.weight_decay", kind="float", default=0.01, argument="weight_decay", flags=("--weight-decay",), least=0, most=1, help="Weight decay."),
    Option(key="training.max_grad_norm", kind="float", default=1.0, argument="max_grad_norm", flags=("--max-grad-norm",), above=0, help="Gradients are scaled down to this norm."),
    Option(key="training.optim", kind="str", default="auto", argument="optim", flags=("--optim",), choices=("auto", "adamw_torch", "paged_adamw_8bit", "adamw_8bit"), help="Optimizer. auto: adamw_torch (fused on CUDA); on a card under 24 GiB with bitsandbytes, paged_adamw_8bit."),
    Option(key="training.seed", kind="int", default=42, argument="seed", flags=("--seed",), variables=("LORA__RANDOM_STATE",), least=0, most=2**32 - 1, help="Seed of the order of rows, the adapter's start, and dropout."),
    Option(key="training.gradient_checkpointing", kind="bool", default=None, argument="gradient_checkpointing", flags=("--gradient-checkpointing/--no-gradient-checkpointing",), help="Trade time for memory. Default: on for CUDA, off on the CPU."),
    Option(key="training.group_by_length", kind="bool", default=False, argument="group_by_length", flags=("--group-by-length/--no-group-by-length",), help="Rows of similar length share an optimizer step: less padding, another order."),
    Option(key="training.eval_steps", kind="int", default=None, argument="eval_steps", flags=("--eval-steps",), least=1, help="Score the held-out rows every N steps. Default: ten times in the run."),
    Option(key="training.early_stopping", kind="int", default=0, argument="early_stopping", flags=("--early-stopping",), aliases=("--early-stopping-patience",), least=0, help="Stop after so many scores in a row without a better one; 0: never. Needs --eval-split."),
    Option(key="training.keep_best", kind="bool", default=False, argument="keep_best", flags=("--keep-best/--no-keep-best",), aliases=("--load-best-model-at-end",), help="The result is the checkpoint with the best held-out loss, not the last. Needs --eval-split."),
    Option(key="training.logging_steps", kind="int", default=1, argument="logging_steps", flags=("--logging-steps",), least=1, hidden=True, fixed="steps are reported as they come", help="The interval of progress: steps are reported as they come, several at a time where they are very fast."),
    Option(key="training.output_dir", kind="str", default="./output", argument="output_dir", flags=("-o", "--output"), aliases=("--output-dir",), help="Folder for runs, history and the finished adapter."),
    Option(key="training.name", kind="str", default=None, argument="run_name", flags=("--name",), aliases=("--run-name",), help="A label of your own for the run."),
    Option(key="tracking.report_to", kind="list", default=("none",), argument="report_to", flags=("--report-to",), help="Trackers, separated by commas: tensorboard, wandb, mlflow, trackio; auto: those that are set up; none."),
    Option(key="tracking.project", kind="str", default="backpropagate", argument="project", flags=("--project",), help="Project (or experiment) of the trackers."),
    # export
    Option(key="export.after_training", kind="str", default=None, argument="export", flags=("--export",), choices=(*export_formats.FORMATS, *export_formats.QUANTIZATIONS), any_case=True, help="What is made of the result when it is trained: a quantization (a GGUF of it), or a format. Default: nothing."),
    Option(key="export.quantization", kind="str", default=export_formats.DEFAULT_QUANTIZATION, argument="quantization", flags=("-q", "--quantization"), choices=tuple(export_formats.QUANTIZATIONS), any_case=True, help="Of a GGUF."),
    Option(key="export.directory", kind="str", default=None, argument="export_dir", flags=("--export-dir",), help="Folder for what is exported. Default: exports/RUN in the output folder."),
    Option(key="export.ollama_name", kind="str", default=None, argument="ollama_name", flags=("--ollama-name",), help="Register the GGUF with Ollama under this name."),
    Option(key="export.ollama_host", kind="str", default=DEFAULT_HOST, argument="ollama_host", flags=("--ollama-host",), foreign=("OLLAMA_HOST",), help="Where Ollama listens."),
    Option(key="export.lmstudio_dir", kind="str", default=None, argument="lmstudio_dir", flags=("--lmstudio-dir",), help="Models folder of LM Studio. Default: its own."),
    Option(key="export.memory", kind="int", default=256, argument="export_memory", flags=("--memory",), least=16, most=2**20, help="MiB that merging and converting may take beside the interpreter."),
    Option(key="export.llama_cpp_dir", kind="str", default=None, argument="llama_cpp_dir", flags=("--llama-cpp-dir",), foreign=("LLAMA_CPP_DIR",), help="Folder of llama.cpp with its converter, for models that ours does not cover. Default: what `backprop setup --converter` fetched."),
    # campaign
    Option(key="campaign.runs", kind="int", default=5, argument="runs", flags=("--runs",), aliases=("--num-runs",), variables=("MULTIRUN__NUM_RUNS",), least=1, most=999, help="Runs of a campaign, one after the other. Several --data files are one run each."),
    Option(key="campaign.samples", kind="int", default=1000, argument="samples_per_run", flags=("--samples-per-run",), variables=("MULTIRUN__SAMPLES_PER_RUN",), least=1, help="Rows of the file for each run of a campaign. Several --data files are used whole unless this is given."),
    Option(key="campaign.merge", kind="str", default="slao", argument="merge", flags=("--merge",), aliases=("--merge-mode",), choices=("slao", "slao-product", "ema", "average", "ties", "dare", "none", "auto"), help="How the runs' adapters become one (docs/multi-run.md). auto: whichever scores best on held-out rows."),
    Option(key="campaign.floor", kind="float", default=0.0, argument="merge_floor", flags=("--merge-floor",), aliases=("--lambda-min",), least=0, most=1, help="slao, slao-product, ema, average: the newest run's coefficient is never below this."),
    Option(key="campaign.weight", kind="float", default=0.5, argument="merge_weight", flags=("--merge-weight",), above=0, most=1, help="ema: the newest run's coefficient."),
    Option(key="campaign.density", kind="float", default=0.5, argument="density", flags=("--density",), above=0, most=1, help="ties, dare: the share of entries that stay."),
    Option(key="campaign.replay", kind="float", default=None, argument="replay_ratio", flags=("--replay",), aliases=("--replay-ratio", "--replay-fraction"), least=0, most=0.5, help="Share of a run's rows that are rows of earlier runs. Default: 0.1 as soon as there are any."),
    Option(key="campaign.holdout", kind="int", default=20, argument="holdout", flags=("--holdout",), least=0, help="Every N-th row of the data is never trained on, and tells what was forgotten. 0: none, and no evaluation."),
    Option(key="campaign.evaluate", kind="bool", default=True, argument="evaluate", flags=("--evaluate/--no-evaluate",), help="After each run, score the merged adapter on held-out rows of all data so far."),
    Option(key="campaign.eval_rows", kind="int", default=64, argument="eval_rows", flags=("--eval-rows",), least=1, help="Held-out rows that are scored, of each run's data at most."),
    Option(key="campaign.early_stop", kind="int", default=0, argument="early_stop", flags=("--early-stop",), least=0, help="End the campaign after N runs in a row without a better average held-out loss. 0: never."),
    # safety
    Option(key="safety.oom_recovery", kind="bool", default=True, argument="oom_recovery", flags=("--oom-recovery/--no-oom-recovery",), help="Out of GPU memory: halve the batch, keep the effective batch, go on from the newest checkpoint."),
    Option(key="safety.max_halvings", kind="int", default=3, argument="max_halvings", least=0, most=16, help="How often the batch may be halved."),
    Option(key="safety.max_respawns", kind="int", default=3, argument="max_respawns", least=0, most=1000, help="How often a run may restart without having saved a new step in between."),
    Option(key="safety.save_steps", kind="int", default=None, argument="save_steps", flags=("--save-steps",), variables=("TRAINING__SAVE_STEPS",), least=1, help="Checkpoint every N steps. Default: adaptive, at most 1 % of the time."),
    Option(key="safety.save_seconds", kind="float", default=60.0, argument="save_seconds", above=0, help="Adaptive checkpoints: seconds of work at risk, where saving is cheap."),
    Option(key="safety.keep_checkpoints", kind="int", default=3, argument="keep_checkpoints", flags=("--keep-checkpoints",), aliases=("--save-total-limit",), least=1, help="How many of the newest checkpoints stay."),
    Option(key="safety.grace", kind="float", default=30.0, argument="grace", flags=("--grace",), above=0, help="Seconds for the last checkpoint when a run is asked to stop."),
    Option(key="safety.hang_floor", kind="float", default=30.0, argument="hang_floor", above=0, help="Seconds without a step before a run can count as hung."),
    Option(key="safety.first_step_deadline", kind="float", default=900.0, argument="first_step_deadline", above=0, help="Seconds for the first step."),
    Option(key="safety.load_deadline", kind="float", default=3600.0, argument="load_deadline", above=0, help="Seconds for loading (and downloading) the model."),
    Option(key="safety.temperature_warn", kind="int", default=80, argument="temperature_warn", least=30, most=120, help="GPU temperature, °C, that is reported."),
    Option(key="safety.temperature_pause", kind="int", default=90, argument="temperature_pause", least=30, most=120, help="GPU temperature, °C, at which a run saves and waits until the card is cool."),
    Option(key="safety.temperature_kill", kind="int", default=95, argument="temperature_kill", least=30, most=120, help="GPU temperature, °C, at which the training process is ended at once."),
    Option(key="safety.standby", kind="str", default="auto", argument="standby", flags=("--standby",), choices=("auto", "on", "off"), help="A second training process, imports done, that takes over at a fault. auto: after a minute of training, where memory is plentiful."),
    Option(key="safety.wait", kind="bool", default=False, argument="wait", flags=("--wait",), help="Output folder or GPU busy: wait instead of giving up."),
    # runner
    Option(key="runner.python", kind="str", default=None, argument="runner_python", flags=("--runner-python",), help="Python interpreter that has the training packages. Default: this one."),
    # top level
    Option(key="debug", kind="bool", default=False, argument="debug", help="Full tracebacks, of faults too, as --verbose."),
)  # fmt: skip

BY_KEY: dict[str, Option] = {option.key: option for option in OPTIONS}
BY_ARGUMENT: dict[str, Option] = {option.argument: option for option in OPTIONS}


class NotAccepted(ValueError):
    """A value that an option does not accept; the message says what it does accept."""


_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def parse(option: Option, raw: object) -> Value:
    """The typed value of `raw`: text from outside, or a value that already has a type. Raises NotAccepted."""
    if raw is None or (isinstance(raw, str) and option.default is None and raw.strip().lower() in ("", "none", "auto")):
        return None
    try:
        value = _typed(option.kind, raw)
    except (TypeError, ValueError):
        raise NotAccepted(f"{raw!r} is not {option.accepted}") from None
    if option.any_case and isinstance(value, str):
        value = value.lower()
    if option.choices and value not in option.choices:
        raise NotAccepted(f"{raw!r} is not {option.accepted}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        low = option.least is not None and value < option.least
        low = low or (option.above is not None and not value > option.above)
        if low or value != value or (option.most is not None and value > option.most):
            raise NotAccepted(f"{raw!r} is not {option.accepted}")
        if value in (float("inf"), float("-inf")):
            raise NotAccepted(f"{raw!r} is not {option.accepted}")
    if value in option.later:
        raise NotAccepted(f"{raw!r} is not part of this release yet")
    if option.fixed and value != option.default:
        raise NotAccepted(f"{raw!r} has no effect, since {option.fixed}")
    return value


def _typed(kind: Kind, raw: object) -> Value:
    if isinstance(raw, os.PathLike):
        raw = os.fspath(raw)
    text = raw.strip() if isinstance(raw, str) else raw
    if kind == "bool":
        if isinstance(text, bool):
            return text
        if isinstance(text, str) and text.lower() in _TRUE + _FALSE:
            return text.lower() in _TRUE
        raise ValueError
    if isinstance(text, bool):
        raise ValueError
    if kind == "int":
        if isinstance(text, str | int):
            return int(text)
        raise ValueError
    if kind == "float":
        if isinstance(text, str | int | float):
            return float(text)
        raise ValueError
    if kind == "list":
        parts = text.split(",") if isinstance(text, str) else text
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise ValueError
        names = tuple(str(part).strip() for part in parts if str(part).strip())
        if not names:
            raise ValueError
        return names
    if isinstance(text, str) and text:
        return text
    raise ValueError
