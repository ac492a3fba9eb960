"""The run's log as this process sees it: lines with the run id, without secrets, and never an error of the training.

The log lies on the disk that the run fills. What does not fit any more is lost: worse would be a training that ends
because a library wanted to say something, or a fault that is not told because its traceback could not be written.
"""

from __future__ import annotations

import io
import logging
import sys
from typing import TextIO

from backpropagate_protocol.redact import redact


class LossyStream(io.TextIOWrapper):
    """Text to a descriptor, unbuffered; what the descriptor does not take is dropped."""

    def __init__(self, descriptor: int) -> None:
        raw = io.FileIO(descriptor, "w", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", write_through=True)

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            pass


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def open_log(run_id: str) -> None:
    """From here on sys.stdout and sys.stderr are lossy, and what libraries log goes there too."""
    streams: tuple[TextIO, TextIO] = LossyStream(1), LossyStream(2)
    sys.stdout, sys.stderr = streams
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_RedactingFormatter(f"%(asctime)s {run_id} %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(True)
