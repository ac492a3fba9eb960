"""The catalogue of everything that can go wrong, as data: code, title, whether to try again, exit status, remedy.

`docs/errors.md` is generated from `CATALOGUE`; `errors.py` has the exceptions that stand for its codes and refuses one
that is not in it.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class ExitCode(IntEnum):
    """What cron and other schedulers may rely on."""

    DONE = 0
    USER_ERROR = 1  # never retry: the same command fails again
    FAILED = 2  # recovery was exhausted
    PARTIAL = 3  # trained, but a later stage failed
    NEEDS_RESET = 69  # the GPU or the machine needs a reset
    TRY_LATER = 75  # stopped resumable, or busy
    INTERRUPTED = 130  # Ctrl-C


class Retry(StrEnum):
    """Answers 'is it worth running the same command again?'"""

    NEVER = "never"  # change something first
    LATER = "later"  # the same command may succeed later
    RESUME = "resume"  # `backprop resume RUN` goes on from the newest checkpoint


class CodeInfo(NamedTuple):
    """One row of the catalogue."""

    code: str
    title: str
    retry: Retry
    exit: ExitCode
    remedy: str


_N, _L, _R = Retry.NEVER, Retry.LATER, Retry.RESUME
_USER, _FAILED, _PARTIAL = ExitCode.USER_ERROR, ExitCode.FAILED, ExitCode.PARTIAL
_RESET, _TRY = ExitCode.NEEDS_RESET, ExitCode.TRY_LATER

_ROWS = (
    # input: what the user gave us
    CodeInfo("INPUT_VALIDATION_FAILED", "an argument is not acceptable", _N, _USER, "Correct the argument named in the message; `backprop COMMAND --help` lists what is accepted."),
    CodeInfo("INPUT_DATASET_INVALID", "the data set cannot be used", _N, _USER, "Run `backprop validate DATA` for the details."),
    CodeInfo("INPUT_DATASET_NOT_FOUND", "the data set does not exist", _N, _USER, "Check the path, or give a hub id such as owner/name."),
    CodeInfo("INPUT_DATASET_PARSE_FAILED", "rows of the data set cannot be parsed", _N, _USER, "Repair the rows named in the message, or go on without them: --on-bad-row skip."),
    CodeInfo("INPUT_DATASET_VALIDATION_FAILED", "rows of the data set do not fit their format", _N, _USER, "Repair the rows named in the message, or go on without them: --on-bad-row skip."),
    CodeInfo("INPUT_DATASET_FORMAT_UNSUPPORTED", "the shape of the data is unknown or wrong for the method", _N, _USER, "docs/data.md shows one row of every accepted format."),
    CodeInfo("INPUT_MODEL_NOT_FOUND", "the model is not a folder, a preset, 'tiny', or a hub id", _N, _USER, "Check the spelling; `backprop info` lists the presets."),
    CodeInfo("INPUT_MODEL_UNSUPPORTED", "this kind of model cannot be exported to the wanted format", _N, _USER, "Export it as `merged`, or to another format that the message names."),
    CodeInfo("INPUT_ADAPTER_UNSUPPORTED", "this kind of adapter cannot be exported to the wanted format", _N, _USER, "Export the merged model instead: --format merged or gguf."),
    CodeInfo("INPUT_ADAPTER_MISMATCH", "the adapter to begin from is not of the kind that this run trains", _N, _USER, "Train with the LoRA settings that the adapter was trained with, or begin without it."),
    CodeInfo("INPUT_ADAPTER_INVALID", "the files of the adapter are damaged, missing or hold no usable numbers", _N, _USER, "Copy the adapter again from where it was made; or take an earlier checkpoint, or train again."),
    CodeInfo("INPUT_AUTH_REQUIRED", "the hub wants a token", _N, _USER, "Log in with `hf auth login`, set HF_TOKEN, or give --token-file."),
    CodeInfo("HUB_PUSH_INVALID_REPO", "the repository's name cannot be used", _N, _USER, "Give --repo owner/name."),
    CodeInfo("HUB_PUSH_NOT_FOUND", "there is no such account or organisation, or it is not yours", _N, _USER, "Check the owner in --repo, and what your token may write."),
    CodeInfo("HUB_PUSH_NETWORK", "the hub cannot be reached", _L, _TRY, "Check the network and push again; what has been uploaded is not uploaded twice."),
    CodeInfo("HUB_PUSH_FAILED", "the hub did not take the upload", _L, _PARTIAL, "Read the message, then push again; what has been uploaded is not uploaded twice."),
    CodeInfo("INPUT_RUN_NOT_FOUND", "no run has this id", _N, _USER, "`backprop list-runs` shows the runs of an output folder; any unique prefix of an id is enough."),
    CodeInfo("INPUT_RUN_AMBIGUOUS", "several runs begin with this prefix", _N, _USER, "Give more characters of the run id."),
    # configuration
    CodeInfo("CONFIG_INVALID", "what is asked for does not go with what is there", _N, _USER, "`backprop config` shows each value and where it came from."),
    CodeInfo("CONFIG_INVALID_SETTING", "a setting has a value that cannot be used, by itself or beside the others", _N, _USER, "`backprop config` shows each value and where it came from."),
    CodeInfo("CONFIG_OUTPUT_UNWRITABLE", "the output folder cannot be written", _N, _USER, "Choose another folder with --output, or change its permissions."),
    # what has to be there
    CodeInfo("DEP_RUNNER_MISSING", "the training packages are not installed", _N, _USER, "pip install 'backpropagate[cuda]' (NVIDIA GPU) or 'backpropagate[cpu]'; or name an interpreter that has them: --runner-python."),
    CodeInfo("DEP_MODEL_LOAD_FAILED", "the model could not be loaded", _N, _USER, "Check the name, your access to it (gated models want a token), and the files of a local folder."),
    CodeInfo("DEP_HUB_UNREACHABLE", "the hub does not answer, and what is wanted is not on this machine", _L, _TRY, "Check the network, or wait until the hub is back; then run the same command again, or `backprop resume RUN`."),
    CodeInfo("DEP_GPU_NOT_AVAILABLE", "a GPU was asked for and none can be used", _N, _USER, "Use --backend auto or cpu, or install a CUDA build of torch and a driver that fits it."),
    CodeInfo("DEP_MLX_UNAVAILABLE", "the MLX toolchain is missing", _N, _USER, "pip install 'backpropagate[mlx]' on Apple silicon."),
    CodeInfo("DEP_OLLAMA_REGISTRATION_FAILED", "Ollama did not take the model", _L, _PARTIAL, "Start Ollama and run the export again; the training is kept."),
    CodeInfo("DEP_EXPORT_TOOL_MISSING", "a tool that this export needs is not installed", _N, _USER, "pip install 'backpropagate[export]'; the message names the tool and other ways."),
    CodeInfo("DEP_PLOT_TOOL_MISSING", "the package that draws pictures is not installed", _N, _USER, "pip install 'backpropagate[plot]'; the numbers are in campaign.json without it."),
    CodeInfo("DEP_TRACKER_MISSING", "a tracker that was asked for is not installed", _N, _USER, "pip install 'backpropagate[monitoring]', or leave it out of --report-to."),
    CodeInfo("DEP_TRACKER_UNREACHABLE", "a tracker does not take the run", _L, _TRY, "trackers.log in the run directory says why; then run `backprop track RUN` again."),
    CodeInfo("DEP_VERSION_UNSUPPORTED", "an installed package has a version we do not support", _N, _USER, "Install a version inside the range that the message names."),
    # while running
    CodeInfo("RUNTIME_TRAINING_FAILED", "the training failed", _R, _FAILED, "runner.log in the run directory has the traceback; `backprop resume RUN` goes on from the newest checkpoint."),
    CodeInfo("RUNTIME_TRAINING_ABORTED", "the training was stopped", _R, _TRY, "`backprop resume RUN` goes on from the newest checkpoint."),
    CodeInfo("RUNTIME_GPU_OOM", "the GPU has not enough memory", _N, _FAILED, "Start a new run with a shorter --max-length, a smaller --lora-r, --load-in-4bit or a smaller model: `backprop resume` keeps the settings that did not fit."),
    CodeInfo("RUNTIME_HOST_OOM", "the machine has not enough memory", _R, _FAILED, "Close other programs, then `backprop resume RUN`; or start a new run with a smaller model or fewer rows (--samples)."),
    CodeInfo("RUNTIME_GPU_ERROR", "the GPU reported a fault", _R, _FAILED, "If it comes back at the same step, look at the data and at the traceback in runner.log."),
    CodeInfo("RUNTIME_GPU_LOST", "the GPU is gone or needs a reset", _R, _RESET, "Reset the GPU or reboot the machine, then `backprop resume RUN`."),
    CodeInfo("RUNTIME_GPU_TEMPERATURE_CRITICAL", "the GPU is too hot and does not cool down", _R, _TRY, "Look after the cooling, then `backprop resume RUN`."),
    CodeInfo("RUNTIME_GPU_MONITORING_FAILED", "the GPU cannot be monitored", _L, _FAILED, "Check the NVIDIA driver."),
    CodeInfo("RUNTIME_FULL_FT_MODEL_TOO_LARGE", "the model is too large for full fine-tuning", _N, _USER, "Use --mode lora, or a model of at most 4 B parameters."),
    CodeInfo("RUNTIME_LOSS_DIVERGED", "the loss became NaN or infinite", _N, _FAILED, "Lower --learning-rate (a tenth is a good start), or look for broken rows; the last good checkpoint is kept."),
    CodeInfo("RUNTIME_HANG", "the training stopped making progress", _R, _FAILED, "runner.log has the stacks of the hung process."),
    CodeInfo("RUNTIME_CHILD_DIED", "the training process died", _R, _FAILED, "runner.log has its last words; the message names the signal or exit code."),
    CodeInfo("RUNTIME_CRASH_LOOP", "the training process died again and again without progress", _R, _FAILED, "The message lists every cause; mend the first."),
    CodeInfo("RUNTIME_PROTOCOL", "the training process sent something that is not our protocol", _R, _FAILED, "Are supervisor and runner of the same version? See --runner-python."),
    CodeInfo("RUNTIME_DISK_FULL", "the disk is full or failing", _R, _TRY, "Free space on the output disk, then `backprop resume RUN`."),
    CodeInfo("RUNTIME_EXPORT_FAILED", "the export failed", _L, _PARTIAL, "The training is kept; run the export again."),
    CodeInfo("RUNTIME_LORA_EXPORT_FAILED", "the adapter could not be written", _L, _PARTIAL, "The training is kept; run the export again."),
    CodeInfo("RUNTIME_GGUF_EXPORT_FAILED", "the GGUF file could not be written", _L, _PARTIAL, "The training is kept; run the export again."),
    CodeInfo("RUNTIME_MERGE_EXPORT_FAILED", "the merged weights could not be written", _L, _PARTIAL, "The training is kept; run the export again."),
    CodeInfo("RUNTIME_EXPORT_MISMATCH", "the exported model does not answer as the trained one", _N, _PARTIAL, "The file was put aside, not registered. The report names the check that failed; please report it with `backprop info`. The training is kept."),
    CodeInfo("RUNTIME_SLAO_ERROR", "the SLAO merge failed", _L, _PARTIAL, "The adapters are kept; run the merge again."),
    CodeInfo("RUNTIME_SLAO_MERGE_FAILED", "the SLAO merge failed", _L, _PARTIAL, "The adapters are kept; run the merge again."),
    CodeInfo("RUNTIME_EVALUATION_FAILED", "the adapters could not be scored on held-out rows", _L, _PARTIAL, "The adapters are kept; `backprop resume RUN` scores them again."),
    CodeInfo("RUNTIME_UI_AUTH_NOT_ENFORCED", "the web UI would be reachable without a password", _N, _USER, "Nothing of this release raises it: there is no web UI yet."),
    CodeInfo("RUNTIME_INTERNAL", "a fault of ours", _L, _FAILED, "Please report it with the output of `backprop info` and --verbose."),
    # what is on disk
    CodeInfo("STATE_CHECKPOINT_INVALID", "no checkpoint can be used", _N, _FAILED, "Damaged checkpoints lie in quarantine beside the good ones; start again with `backprop train`."),
    CodeInfo("STATE_SLAO_CHECKPOINT_INVALID", "the state of the merge cannot be used", _N, _FAILED, "Run the merge again."),
    CodeInfo("STATE_BUSY", "another run holds the output folder or the GPU", _L, _TRY, "Wait for it (--wait), or choose another --output."),
    CodeInfo("STATE_RUN_MISMATCH", "what is on disk does not belong to this run", _N, _USER, "Resume with the data and the settings of the run, or start a new one."),
    CodeInfo("STATE_RUN_FINISHED", "the run is finished", _N, _USER, "Start a new run with `backprop train`."),
    CodeInfo("STATE_RUN_NOT_RUNNING", "the run is not running, so there is nothing to stop", _N, _USER, "`backprop list-runs` shows the runs of an output folder and which of them are running."),
    CodeInfo("STATE_STOP_PENDING", "the run was asked to stop and has not ended yet", _L, _TRY, "Give it time and look with `backprop show-run RUN`; `backprop stop RUN --now` ends it without another save."),
    CodeInfo("STATE_RUN_OF_CAMPAIGN", "the run is part of a campaign", _N, _USER, "Resume its campaign; the message names it."),
    CodeInfo("STATE_HISTORY_INVALID", "the run history cannot be read", _N, _USER, "`backprop list-runs --rebuild` makes it again from the run directories."),
    CodeInfo("PARTIAL_BATCH_OPERATION", "some of several operations failed", _L, _PARTIAL, "Run the command again for those that failed."),
)  # fmt: skip

CATALOGUE: dict[str, CodeInfo] = {row.code: row for row in _ROWS}
