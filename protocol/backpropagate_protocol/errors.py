"""The catalogue of everything that can go wrong: code, exception class, remedy, exit code.

Both sides raise from this tree. The child sends an error's code over the wire and the parent rebuilds the same class
with `error_for`; the command line prints `[CODE]: message` and exits with the code's exit status. `docs/errors.md` is
generated from `CATALOGUE`, so a code without an entry cannot be raised (`BackpropagateError` refuses it).
"""

from __future__ import annotations

import errno
from enum import IntEnum, StrEnum
from typing import ClassVar, NamedTuple


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
    CodeInfo("CONFIG_INVALID", "the configuration contradicts itself", _N, _USER, "`backprop config` shows each value and where it came from."),
    CodeInfo("CONFIG_INVALID_SETTING", "a setting has a value that cannot be used", _N, _USER, "`backprop config` shows each value and where it came from."),
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
    CodeInfo("RUNTIME_UI_AUTH_NOT_ENFORCED", "the web UI would be reachable without a password", _N, _USER, "Give --auth user:pass, or keep the UI on this machine."),
    CodeInfo("RUNTIME_INTERNAL", "a fault of ours", _L, _FAILED, "Please report it with the output of `backprop info` and --verbose."),
    # what is on disk
    CodeInfo("STATE_CHECKPOINT_INVALID", "no checkpoint can be used", _N, _FAILED, "Damaged checkpoints lie in quarantine beside the good ones; start again with `backprop train`."),
    CodeInfo("STATE_SLAO_CHECKPOINT_INVALID", "the state of the merge cannot be used", _N, _FAILED, "Run the merge again."),
    CodeInfo("STATE_BUSY", "another run holds the output folder or the GPU", _L, _TRY, "Wait for it (--wait), or choose another --output."),
    CodeInfo("STATE_RUN_MISMATCH", "what is on disk does not belong to this run", _N, _USER, "Resume with the data and the settings of the run, or start a new one."),
    CodeInfo("STATE_RUN_FINISHED", "the run is finished", _N, _USER, "Start a new run with `backprop train`."),
    CodeInfo("STATE_RUN_OF_CAMPAIGN", "the run is part of a campaign", _N, _USER, "Resume its campaign; the message names it."),
    CodeInfo("STATE_HISTORY_INVALID", "the run history cannot be read", _N, _USER, "`backprop list-runs --rebuild` makes it again from the run directories."),
    CodeInfo("PARTIAL_BATCH_OPERATION", "some of several operations failed", _L, _PARTIAL, "Run the command again for those that failed."),
)  # fmt: skip

CATALOGUE: dict[str, CodeInfo] = {row.code: row for row in _ROWS}


class BackpropagateError(Exception):
    """Everything we raise. `code` is stable; `suggestion` says what to do next.

    A message says what happened, in one or two sentences, with the user's own names in it.
    """

    default_code: ClassVar[str] = "RUNTIME_INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        suggestion: str | None = None,
        run_id: str | None = None,
        exit_code: ExitCode | None = None,
    ) -> None:
        """exit_code: where it is not the code's own, because nothing was begun of what could be partly done."""
        super().__init__(message)
        self.message = message
        self.info = CATALOGUE[code or self.default_code]
        self.suggestion = suggestion or self.info.remedy
        self.run_id = run_id
        self._exit_code = exit_code
        self.add_note(f"What to do: {self.suggestion}")  # shown under a traceback that nobody caught

    @property
    def code(self) -> str:
        return self.info.code

    @property
    def exit_code(self) -> ExitCode:
        return self._exit_code or self.info.exit

    @property
    def retry(self) -> Retry:
        return self.info.retry

    def __str__(self) -> str:
        return f"[{self.code}]: {self.message}"


class UserInputError(BackpropagateError):
    default_code = "INPUT_VALIDATION_FAILED"


class RunNotFoundError(UserInputError):
    default_code = "INPUT_RUN_NOT_FOUND"


class ConfigurationError(BackpropagateError):
    default_code = "CONFIG_INVALID"


class InvalidSettingError(ConfigurationError):
    default_code = "CONFIG_INVALID_SETTING"


class DependencyError(BackpropagateError):
    default_code = "DEP_RUNNER_MISSING"


class DatasetError(BackpropagateError):
    default_code = "INPUT_DATASET_INVALID"


class DatasetNotFoundError(DatasetError):
    default_code = "INPUT_DATASET_NOT_FOUND"


class DatasetParseError(DatasetError):
    default_code = "INPUT_DATASET_PARSE_FAILED"


class DatasetValidationError(DatasetError):
    default_code = "INPUT_DATASET_VALIDATION_FAILED"


class DatasetFormatError(DatasetError):
    default_code = "INPUT_DATASET_FORMAT_UNSUPPORTED"


class TrainingError(BackpropagateError):
    default_code = "RUNTIME_TRAINING_FAILED"


class ModelLoadError(TrainingError):
    default_code = "DEP_MODEL_LOAD_FAILED"


class TrainingAbortedError(TrainingError):
    default_code = "RUNTIME_TRAINING_ABORTED"


class LossDivergedError(TrainingError):
    default_code = "RUNTIME_LOSS_DIVERGED"


class CheckpointError(TrainingError):
    default_code = "STATE_CHECKPOINT_INVALID"


class DiskFullError(TrainingError):
    default_code = "RUNTIME_DISK_FULL"


class BusyError(BackpropagateError):
    default_code = "STATE_BUSY"


class ExportError(BackpropagateError):
    default_code = "RUNTIME_EXPORT_FAILED"


class LoRAExportError(ExportError):
    default_code = "RUNTIME_LORA_EXPORT_FAILED"


class GGUFExportError(ExportError):
    default_code = "RUNTIME_GGUF_EXPORT_FAILED"


class MergeExportError(ExportError):
    default_code = "RUNTIME_MERGE_EXPORT_FAILED"


class OllamaRegistrationError(ExportError):
    default_code = "DEP_OLLAMA_REGISTRATION_FAILED"


class ExportMismatchError(ExportError):
    default_code = "RUNTIME_EXPORT_MISMATCH"


class HubPushError(ExportError):
    default_code = "HUB_PUSH_FAILED"


class GPUError(BackpropagateError):
    default_code = "RUNTIME_GPU_ERROR"


class GPUNotAvailableError(GPUError):
    default_code = "DEP_GPU_NOT_AVAILABLE"


class GPUMemoryError(GPUError):
    default_code = "RUNTIME_GPU_OOM"


class GPUTemperatureError(GPUError):
    default_code = "RUNTIME_GPU_TEMPERATURE_CRITICAL"


class GPUMonitoringError(GPUError):
    default_code = "RUNTIME_GPU_MONITORING_FAILED"


class SLAOError(BackpropagateError):
    default_code = "RUNTIME_SLAO_ERROR"


class SLAOMergeError(SLAOError):
    default_code = "RUNTIME_SLAO_MERGE_FAILED"


class SLAOCheckpointError(SLAOError):
    default_code = "STATE_SLAO_CHECKPOINT_INVALID"


class BatchOperationError(BackpropagateError):
    default_code = "PARTIAL_BATCH_OPERATION"


def _classes(root: type[BackpropagateError]) -> list[type[BackpropagateError]]:
    found = [root]
    for child in root.__subclasses__():
        found += _classes(child)
    return found


# Codes that share a class with a parent code; all others are some class's default.
_SHARED: dict[str, type[BackpropagateError]] = {
    "INPUT_MODEL_NOT_FOUND": UserInputError,
    "INPUT_MODEL_UNSUPPORTED": UserInputError,
    "INPUT_ADAPTER_UNSUPPORTED": UserInputError,
    "INPUT_ADAPTER_MISMATCH": UserInputError,
    "INPUT_ADAPTER_INVALID": UserInputError,
    "INPUT_AUTH_REQUIRED": UserInputError,
    "HUB_PUSH_INVALID_REPO": UserInputError,
    "HUB_PUSH_NOT_FOUND": HubPushError,
    "HUB_PUSH_NETWORK": HubPushError,
    "DEP_EXPORT_TOOL_MISSING": DependencyError,
    "DEP_PLOT_TOOL_MISSING": DependencyError,
    "INPUT_RUN_AMBIGUOUS": RunNotFoundError,
    "CONFIG_OUTPUT_UNWRITABLE": ConfigurationError,
    "DEP_MLX_UNAVAILABLE": DependencyError,
    "DEP_VERSION_UNSUPPORTED": DependencyError,
    "DEP_HUB_UNREACHABLE": DependencyError,
    "RUNTIME_HOST_OOM": TrainingError,
    "RUNTIME_GPU_LOST": GPUError,
    "RUNTIME_FULL_FT_MODEL_TOO_LARGE": ConfigurationError,
    "RUNTIME_EVALUATION_FAILED": TrainingError,
    "RUNTIME_HANG": TrainingError,
    "RUNTIME_CHILD_DIED": TrainingError,
    "RUNTIME_CRASH_LOOP": TrainingError,
    "RUNTIME_PROTOCOL": TrainingError,
    "RUNTIME_UI_AUTH_NOT_ENFORCED": ConfigurationError,
    "STATE_RUN_MISMATCH": UserInputError,
    "STATE_RUN_FINISHED": UserInputError,
    "STATE_RUN_OF_CAMPAIGN": UserInputError,
    "STATE_HISTORY_INVALID": BackpropagateError,
}


def error_for(
    code: str,
    message: str,
    *,
    suggestion: str | None = None,
    run_id: str | None = None,
    exit_code: ExitCode | None = None,
) -> BackpropagateError:
    """The exception that stands for `code`; an unknown code (a newer runner's) becomes RUNTIME_INTERNAL."""
    if code not in CATALOGUE:
        return BackpropagateError(f"{code}: {message}", suggestion=suggestion, run_id=run_id, exit_code=exit_code)
    by_default = {cls.default_code: cls for cls in _classes(BackpropagateError)}
    cls = _SHARED.get(code) or by_default[code]
    return cls(message, code=code, suggestion=suggestion, run_id=run_id, exit_code=exit_code)


def code_of_write(error: OSError, otherwise: str = "CONFIG_OUTPUT_UNWRITABLE") -> str:
    """The code of something that could not be written: want of room is a matter of time, all else is `otherwise`."""
    return "RUNTIME_DISK_FULL" if error.errno in (errno.ENOSPC, errno.EDQUOT) else otherwise
