"""The quantize stage: one GGUF to another, by llama.cpp.

llama.cpp answers every failure with the same number: the true reason is in what it logged. A full disk it cannot tell from
a missing folder, and a target that is its own source it destroys; so both are looked at before. A dry run tells the size of
the result, and the result is read again before it gets its name.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backpropagate_protocol.durable import file_entry
from backpropagate_protocol.errors import GGUFExportError, UserInputError
from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.jobs import QuantizeJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export.llama import Log, load
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.room import check_disk
from backpropagate_runner.export.stage import Stage, new_file

_PLAIN = "quantized.gguf.partial"
_BUFFER = 64 << 20  # bytes of rows in memory at once; more makes it no faster
_WHOLE = frozenset({"F32", "F16", "BF16"})
_TENSOR = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s*(\S*)")
_SIZE = re.compile(r"quant size\s*=\s*([\d.]+) MiB")
_FALLBACK = re.compile(r"falling back to (\S+)|fallback quantization")
_NO_ROOM = 1 << 20  # bytes; with less than that free, a failure is the disk's
_SPARE = 1.02  # header and rounding: the dry run counts tensors only


def quantize(job: QuantizeJob, stage: Stage) -> Made:
    """Raises GGUFExportError with llama.cpp's own reason, UserInputError for what cannot be asked, DiskFullError."""
    source, out = Path(job.source), Path(job.out)
    wanted = QUANTIZATIONS.get(job.quantization)
    if wanted is None:
        raise UserInputError(f"there is no quantization {job.quantization!r}; there are {', '.join(QUANTIZATIONS)}")
    if out.exists() and out.samefile(source):
        raise UserInputError(f"{source.name} would be quantized onto itself")
    before = GgufFile(source)
    quantized = sorted({info.type for info in before.tensors.values()} - _WHOLE)
    if quantized:
        raise UserInputError(
            f"{source.name} is quantized already ({', '.join(quantized)}); a second time would lose more than it tells",
            suggestion="Quantize the f16, bf16 or f32 file.",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    size = _Run(job, stage, dry=True).run(source, out)
    check_disk(out.parent, int(size * _SPARE), f"the {job.quantization} file")
    with new_file(out) as partial:
        run = _Run(job, stage, dry=False, total=size)
        run.run(source, partial)
        _check_result(before, partial)
    entry = file_entry(out)
    stage.advance(entry.size, entry.size)
    notes = (f"{run.fallbacks} tensors were too narrow for {job.quantization} and got the next larger type",)
    return Made(str(out), entry.size, entry.sha256, notes if run.fallbacks else ())


class _Run:
    """One call of llama_model_quantize, and what is heard meanwhile."""

    def __init__(self, job: QuantizeJob, stage: Stage, *, dry: bool, total: int = 0) -> None:
        self._job, self._stage, self._dry, self._total = job, stage, dry, total
        self._size = 0
        self._error: BaseException | None = None
        self.fallbacks = 0

    def run(self, source: Path, target: Path) -> int:
        """The size of the tensors of the result, in bytes."""
        load()
        import llama_cpp

        log = Log(self._heard)
        wishes = llama_cpp.llama_model_quantize_default_params()
        wishes.nthread = self._job.threads or os.cpu_count() or 1
        wishes.ftype = _file_type(self._job.quantization)
        wishes.max_buf_size = _BUFFER
        wishes.dry_run = self._dry
        with _writable(target.absolute()) as name:
            failed = llama_cpp.llama_model_quantize(os.fsencode(source.absolute()), name, ctypes.byref(wishes))
        Log()
        if self._error is not None:
            raise self._error
        if failed:
            check_disk(
                target.parent, _NO_ROOM, f"the {self._job.quantization} file"
            )  # it says no more than `iostream error`
            raise GGUFExportError(f"llama.cpp did not quantize {source.name}: {log.reason()}")
        return self._size

    def _heard(self, line: str) -> None:
        if found := _SIZE.search(line):
            self._size = round(float(found[1]) * 2**20)
        if _FALLBACK.search(line):
            self.fallbacks += 1
        if (found := _TENSOR.match(line)) and not self._dry:
            at, count, name = int(found[1]), int(found[2]), found[3]
            try:
                self._stage.advance(self._total * (at - 1) // count, self._total, name)
            except BaseException as error:  # noqa: BLE001 - it would be lost in the library: told after the call
                self._error = error


@contextmanager
def _writable(target: Path) -> Iterator[bytes]:
    """A name by which llama.cpp can write `target`."""
    if sys.platform != "win32":
        yield os.fsencode(target)
        return
    with plainly_named(target) as name:
        yield name


@contextmanager
def plainly_named(target: Path) -> Iterator[bytes]:
    """A name of ASCII letters alone, relative to the folder of `target`, which what was written there becomes.

    On Windows llama.cpp reads by names in UTF-8, but writes by names in the code page of the system. This process does
    nothing else, so that it may change its folder.
    """
    before = os.getcwd()
    os.chdir(target.parent)
    try:
        yield _PLAIN.encode("ascii")
        if os.path.exists(_PLAIN):
            os.replace(_PLAIN, target.name)
    finally:
        with suppress(FileNotFoundError):
            os.remove(_PLAIN)
        os.chdir(before)


def _file_type(quantization: str) -> int:
    import llama_cpp

    if quantization == "f32":
        return int(llama_cpp.LLAMA_FTYPE_ALL_F32)
    return int(getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quantization.upper()}"))


def _check_result(before: GgufFile, made: Path) -> None:
    after = GgufFile(made)
    if after.tensors.keys() != before.tensors.keys():
        lost = sorted(before.tensors.keys() ^ after.tensors.keys())
        raise GGUFExportError(f"llama.cpp wrote other tensors than it was given: {', '.join(lost[:3])}")
    for name, info in after.tensors.items():
        if info.shape != before.tensors[name].shape:
            raise GGUFExportError(f"llama.cpp changed the shape of {name}: {info.shape}")
