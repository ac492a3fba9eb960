"""The exceptions that stand for the codes of the catalogue, and the way from a code back to its exception.

Both sides raise from this tree. The child sends an error's code over the wire and the parent rebuilds the same class
with `error_for`; the command line prints `[CODE]: message` and exits with the code's exit status. A code without an
entry in `catalogue.py` cannot be raised: `BackpropagateError` refuses it.
"""

from __future__ import annotations

import errno
from typing import ClassVar

from backpropagate_protocol.catalogue import CATALOGUE, ExitCode, Retry


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
    "DEP_TRACKER_MISSING": DependencyError,
    "DEP_TRACKER_UNREACHABLE": DependencyError,
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
    "STATE_RUN_NOT_RUNNING": UserInputError,
    "STATE_STOP_PENDING": BackpropagateError,
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
