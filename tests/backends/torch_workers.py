"""A program for a test: trains with data-loader workers, and once they are at work writes their pids and waits for ever."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil

from backpropagate_backends import torch_train
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.prepared import Prepared
from tests.backends.torch_session import KeepingSession, make_job


def wait(step: int) -> None:
    if step == 2:
        print(*(child.pid for child in psutil.Process().children()), flush=True)
        signal.pause()


if __name__ == "__main__":
    model, data, folder = map(Path, sys.argv[1:])
    torch_train.DATALOADER_WORKERS = 2
    backend = CpuBackend()
    backend.warm()
    rows = Prepared(data)
    backend.train(KeepingSession(make_job(model), folder, rows, on_step=wait), rows)
