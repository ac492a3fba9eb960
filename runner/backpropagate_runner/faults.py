"""An exception becomes a Fault: what kind it is, and what its numbers say. What to do about it, the parent decides.

In this order: our own coded errors; class and CUDA error code; the texts that libraries are known to raise; else INTERNAL.
A chain of exceptions (`raise … from`, or raised while handling) is judged by its innermost link that says anything, since
what fails while cleaning up after an out-of-memory is only its echo. No framework is imported: classes are known by name.
"""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator

from backpropagate_protocol.catalogue import ExitCode
from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.messages import Fault, FaultKind, Phase
from backpropagate_protocol.mlx_rules import OUT_OF_MEMORY
from backpropagate_protocol.redact import redact

_MAX_TRACEBACK = 32_000
_MAX_MESSAGE = 1_000

_CODE = {
    FaultKind.OOM: "RUNTIME_GPU_OOM",
    FaultKind.HOST_OOM: "RUNTIME_HOST_OOM",
    FaultKind.CUDA: "RUNTIME_GPU_ERROR",
    FaultKind.GPU_LOST: "RUNTIME_GPU_LOST",
    FaultKind.GPU_BUSY: "STATE_BUSY",
    FaultKind.DIVERGED: "RUNTIME_LOSS_DIVERGED",
    FaultKind.DISK: "RUNTIME_DISK_FULL",
    FaultKind.USER: "DEP_GPU_NOT_AVAILABLE",  # the only user error that arrives as a foreign exception
    FaultKind.CHECKPOINT: "STATE_CHECKPOINT_INVALID",
    FaultKind.INTERNAL: "RUNTIME_TRAINING_FAILED",
}
_KIND = {code: kind for kind, code in _CODE.items()}

# cudaError_t. What is not here but carries a code has poisoned the context too: CUDA.
_CUDA_CODES = {
    2: FaultKind.OOM,
    46: FaultKind.GPU_BUSY,
    100: FaultKind.USER,  # no device
    802: FaultKind.USER,  # the system is not ready
    803: FaultKind.USER,  # driver and runtime do not fit
}

# Looked for in this order, without regard to case.
_TEXTS: tuple[tuple[FaultKind, tuple[str, ...]], ...] = (
    (
        FaultKind.GPU_LOST,
        (
            "gpu is lost",
            "fallen off the bus",
            "gpu requires reset",
            "unable to determine the device handle for gpu",
            "device has been removed",
        ),
    ),
    (
        FaultKind.HOST_OOM,
        (
            "defaultcpuallocator",
            "cannot allocate memory",
            "std::bad_alloc",
            "bad allocation",
            "paging file is too small",
        ),
    ),
    (
        FaultKind.OOM,
        (
            "cuda out of memory",
            "cuda error: out of memory",
            "cublas_status_alloc_failed",
            "cudnn_status_alloc_failed",
            "cusparse_status_alloc_failed",
            "triton error [cuda]: out of memory",
            "error out of memory at line",  # bitsandbytes
            "hip out of memory",
            "mps backend out of memory",
            "handles_.at(i) internal assert failed",  # seen only where memory had run out
            "cuda driver error: device not ready",  # as above
            *OUT_OF_MEMORY,  # of MLX
        ),
    ),
    (FaultKind.GPU_BUSY, ("device(s) is/are busy or unavailable",)),
    (
        FaultKind.USER,
        (
            "no cuda-capable device is detected",
            "found no nvidia driver",
            "no cuda gpus are available",
            "torch not compiled with cuda enabled",
            "cuda driver version is insufficient",
        ),
    ),
    (
        FaultKind.CUDA,
        (
            "cuda error",
            "cuda driver error",
            "cublas_status_",
            "cudnn_status_",
            "cudnn error",
            "triton error [cuda]",
            "an illegal memory access",
            "device-side assert",
            "unspecified launch failure",
            "misaligned address",
            "uncorrectable ecc",
            "uncorrectable nvlink",
        ),
    ),
    (
        FaultKind.DISK,
        (
            "no space left on device",
            "disk quota exceeded",
            "pytorchstreamwriter failed writing",
            "unexpected pos",  # torch's archive writer, when a write fell short
            "iostream error",  # the same, of a small file
            "serialization error: i/o error",
            "input/output error",
            "not enough space on the disk",
            "file too large",
        ),
    ),
)

_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG})

_UNITS = {"bytes": 2**-20, "kib": 2**-10, "mib": 1.0, "gib": 2.0**10, "tib": 2.0**20}
_NEEDED = re.compile(r"tried to allocate ([\d.]+) ?(bytes|[kmgt]ib)", re.IGNORECASE)
_FREE = re.compile(r"([\d.]+) ?(bytes|[kmgt]ib) (?:is )?free", re.IGNORECASE)


def classify(error: BaseException, phase: Phase, step: int, others: int = 0) -> Fault:
    """The Fault that tells the parent about `error`. All its text is redacted."""
    kind, code, told = _judge(error)
    if isinstance(told, BackpropagateError):
        message, suggestion = told.message, told.suggestion
    else:
        message, suggestion = _headline(told), error_for(code, "").suggestion
    text = _text(told)
    return Fault(
        kind=kind,
        code=code,
        message=redact(message)[:_MAX_MESSAGE],
        suggestion=redact(suggestion),
        traceback=redact("".join(traceback.format_exception(error)))[-_MAX_TRACEBACK:],
        phase=phase,
        step=step,
        needed=_mib(_NEEDED, text),
        free=_mib(_FREE, text),
        others=others,
    )


def is_disk_trouble(error: BaseException) -> bool:
    """Whether a failed write is the disk's fault, also where a library wrapped it beyond recognition."""
    return any(_kind_of(link) is FaultKind.DISK for link in _chain(error))


def _judge(error: BaseException) -> tuple[FaultKind, str, BaseException]:
    # A model that could not be loaded for want of memory is first of all a want of memory.
    if isinstance(error, BackpropagateError) and not (error.code == "DEP_MODEL_LOAD_FAILED" and error.__cause__):
        return _own_kind(error), error.code, error
    for link in reversed(list(_chain(error))):
        if isinstance(link, BackpropagateError):
            return _own_kind(link), link.code, link
        kind = _kind_of(link)
        # A machine without a GPU is asked for one, and answers, on many a way to another error: only the last one counts.
        if kind is not None and (link is error or kind not in (FaultKind.USER, FaultKind.GPU_BUSY)):
            return kind, _CODE[kind], link
    return FaultKind.INTERNAL, _CODE[FaultKind.INTERNAL], error


def _own_kind(error: BackpropagateError) -> FaultKind:
    if error.code in _KIND:
        return _KIND[error.code]
    # A hub that does not answer now will not answer a respawn either: that is for whoever comes again later.
    over = error.exit_code is ExitCode.USER_ERROR or error.code == "DEP_HUB_UNREACHABLE"
    return FaultKind.USER if over else FaultKind.INTERNAL


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, what it was raised from or during, and so on; outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _kind_of(error: BaseException) -> FaultKind | None:
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, MemoryError):
        return FaultKind.HOST_OOM
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return FaultKind.HOST_OOM
        if error.errno in _DISK_ERRNOS:
            return FaultKind.DISK
    if "OutOfMemoryError" in names:
        return FaultKind.OOM
    code = getattr(error, "error_code", None)
    if isinstance(code, int) and names & {"AcceleratorError", "CudaError"}:
        return _CUDA_CODES.get(code, FaultKind.CUDA)
    text = _text(error).lower()
    for kind, parts in _TEXTS:
        if any(part in text for part in parts):
            return kind
    return None


def _text(error: BaseException) -> str:
    return error.message if isinstance(error, BackpropagateError) else str(error)


def _headline(error: BaseException) -> str:
    lines = _text(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _mib(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.search(text)
    return round(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
