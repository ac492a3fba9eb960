"""Real messages of real libraries, and what is made of them."""

from __future__ import annotations

import errno
import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_protocol.catalogue import CATALOGUE, ExitCode
from backpropagate_protocol.errors import (
    DatasetError,
    LossDivergedError,
    ModelLoadError,
    error_for,
)
from backpropagate_protocol.messages import Fault, FaultKind, Phase
from backpropagate_runner.faults import classify, is_disk_trouble

K = FaultKind

TORCH_OOM = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.64 GiB of which 12.88 MiB is free. "
    "Including non-PyTorch memory, this process has 23.61 GiB memory in use. Of the allocated memory 22.90 GiB is "
    "allocated by PyTorch, and 251.68 MiB is reserved by PyTorch but unallocated."
)
CPU_OOM = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1099511627776 bytes. Error code 12 (Cannot allocate memory)"
)
HELP = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1"
)

MESSAGES = [
    (TORCH_OOM, K.OOM),
    ("CUDA error: out of memory" + HELP, K.OOM),
    ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", K.OOM),
    ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", K.OOM),
    ("Triton Error [CUDA]: out of memory", K.OOM),
    ("Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp", K.OOM),
    ('handles_.at(i) INTERNAL ASSERT FAILED at "../c10/cuda/driver_api.cpp":15', K.OOM),
    ("CUDA driver error: device not ready", K.OOM),
    (CPU_OOM, K.HOST_OOM),
    ("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes.", K.HOST_OOM),
    ("std::bad_alloc", K.HOST_OOM),
    ("The paging file is too small for this operation to complete. (os error 1455)", K.HOST_OOM),
    ("CUDA error: an illegal memory access was encountered" + HELP, K.CUDA),
    ("CUDA error: device-side assert triggered" + HELP, K.CUDA),
    ("CUDA error: unspecified launch failure", K.CUDA),
    ("CUDA error: misaligned address", K.CUDA),
    ("CUDA error: uncorrectable ECC error encountered", K.CUDA),
    ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`", K.CUDA),
    ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", K.CUDA),
    ("CUDA error: the launch timed out and was terminated", K.CUDA),
    ("CUDA error: unknown error", K.CUDA),
    ("Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.", K.GPU_LOST),
    ("GPU has fallen off the bus", K.GPU_LOST),
    ("CUDA error: CUDA-capable device(s) is/are busy or unavailable", K.GPU_BUSY),
    ("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", K.USER),
    ("No CUDA GPUs are available", K.USER),
    ("CUDA error: no CUDA-capable device is detected", K.USER),
    ("Torch not compiled with CUDA enabled", K.USER),
    ("[enforce fail at inline_container.cc:659] . unexpected pos 128 vs 22", K.DISK),
    ("PytorchStreamWriter failed writing file data/3: file write failed", K.DISK),
    ("basic_ios::clear: iostream error", K.DISK),
    ("Error while serializing: I/O error: No space left on device (os error 28)", K.DISK),
    ("the size of tensor a (3) must match the size of tensor b (4)", K.INTERNAL),
    ("mat1 and mat2 shapes cannot be multiplied (4x8 and 7x2)", K.INTERNAL),
]


def _told(error: BaseException) -> Fault:
    return classify(error, Phase.TRAIN, 7)


@pytest.mark.parametrize(("text", "kind"), MESSAGES)
def test_a_message_is_known(text: str, kind: FaultKind) -> None:
    fault = _told(RuntimeError(text))
    assert fault.kind is kind
    assert fault.code in CATALOGUE
    assert (fault.phase, fault.step) == (Phase.TRAIN, 7)


class OutOfMemoryError(RuntimeError):
    """Named as torch's is."""


class AcceleratorError(RuntimeError):
    """Named as torch's is, with its error code."""

    def __init__(self, code: int) -> None:
        super().__init__("CUDA error: something")
        self.error_code = code


def test_the_class_says_it_where_the_text_does_not() -> None:
    assert _told(OutOfMemoryError("")).kind is K.OOM


@pytest.mark.parametrize(
    ("code", "kind"), [(2, K.OOM), (700, K.CUDA), (710, K.CUDA), (719, K.CUDA), (46, K.GPU_BUSY), (100, K.USER)]
)
def test_the_error_code_goes_before_the_text(code: int, kind: FaultKind) -> None:
    assert _told(AcceleratorError(code)).kind is kind


def test_memory_is_read_from_the_message_in_mib() -> None:
    fault = _told(OutOfMemoryError(TORCH_OOM))
    assert (fault.needed, fault.free) == (20, 13)
    assert _told(RuntimeError(CPU_OOM)).needed == 1024 * 1024


@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "EDQUOT", "EROFS", "EFBIG"])
def test_errnos_of_a_failing_disk(code: str) -> None:
    number = getattr(errno, code)
    assert _told(OSError(number, os.strerror(number))).kind is K.DISK


def test_errors_that_the_disk_did_not_make() -> None:
    assert _told(FileNotFoundError(errno.ENOENT, "no such file")).kind is K.INTERNAL
    assert not is_disk_trouble(RuntimeError(TORCH_OOM))
    assert _told(OSError(errno.ENOMEM, "Cannot allocate memory")).kind is K.HOST_OOM
    assert _told(MemoryError()).kind is K.HOST_OOM


def test_our_own_errors_keep_their_code_and_advice() -> None:
    fault = _told(DatasetError("rows.jsonl has no rows", suggestion="write some"))
    assert (fault.kind, fault.code, fault.suggestion) == (K.USER, "INPUT_DATASET_INVALID", "write some")
    assert fault.message == "rows.jsonl has no rows"
    assert _told(LossDivergedError("nan")).kind is K.DIVERGED
    assert _told(error_for("STATE_CHECKPOINT_INVALID", "torn")).kind is K.CHECKPOINT
    assert _told(error_for("DEP_GPU_NOT_AVAILABLE", "none")).kind is K.USER


def _chained(*errors: BaseException) -> BaseException:
    """Each raised while the one before it was handled; returns the last."""
    for inner, outer in pairwise(errors):
        outer.__context__ = inner
    return errors[-1]


def test_what_fails_while_cleaning_up_is_only_an_echo() -> None:
    assert _told(_chained(OutOfMemoryError(""), RuntimeError("CUDA error: unknown error"))).kind is K.OOM
    assert _told(_chained(OutOfMemoryError(""), ValueError("shape"))).kind is K.OOM


def test_an_error_handled_on_the_way_does_not_hide_the_fault() -> None:
    assert _told(_chained(KeyError("cache"), AttributeError("x"), RuntimeError(TORCH_OOM))).kind is K.OOM


def test_a_missing_gpu_that_was_handled_is_not_the_fault() -> None:
    assert _told(_chained(RuntimeError("Found no NVIDIA driver"), RuntimeError("shape"))).kind is K.INTERNAL


def test_a_context_that_was_suppressed_does_not_count() -> None:
    error = RuntimeError("plain")
    error.__context__ = OutOfMemoryError("")
    error.__suppress_context__ = True
    assert _told(error).kind is K.INTERNAL


def test_a_model_that_could_not_be_loaded_for_want_of_memory_is_a_want_of_memory() -> None:
    error = ModelLoadError("tiny could not be loaded")
    error.__cause__ = RuntimeError(TORCH_OOM)
    assert _told(error).kind is K.OOM
    error.__cause__ = OSError("connection refused")
    assert (_told(error).kind, _told(error).code) == (K.USER, "DEP_MODEL_LOAD_FAILED")


def test_a_hub_that_does_not_answer_ends_the_attempts_and_is_for_later() -> None:
    error = ModelLoadError("the hub does not answer", code="DEP_HUB_UNREACHABLE")
    error.__cause__ = ConnectionError("refused")
    told = _told(error)
    assert (told.kind, told.code) == (K.USER, "DEP_HUB_UNREACHABLE")
    assert error.exit_code is ExitCode.TRY_LATER


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert _told(first).kind is K.INTERNAL


def test_a_traceback_is_redacted_and_bounded() -> None:
    try:
        raise RuntimeError("token=abcdefgh12345678 " + "x" * 100_000)
    except RuntimeError as error:
        fault = _told(error)
    assert "abcdefgh12345678" not in fault.message + fault.traceback
    assert len(fault.message) <= 1_000
    assert len(fault.traceback) <= 32_000


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    assert _told(RuntimeError(text)).code in CATALOGUE
