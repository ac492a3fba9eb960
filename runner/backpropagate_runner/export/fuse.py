"""The fuse stage: a base that only MLX can read, and an adapter, become a model that everybody can."""

from __future__ import annotations

from pathlib import Path

from backpropagate_backends.registry import fuser
from backpropagate_protocol.jobs import FuseJob
from backpropagate_protocol.messages import Made
from backpropagate_runner.export.adapter import open_adapter
from backpropagate_runner.export.digests import digest_of, files_below, folder_digest
from backpropagate_runner.export.stage import Stage, new_folder


def fuse(job: FuseJob, stage: Stage) -> Made:
    """Raises what `open_adapter` raises, and the backend; OSError if the disk does not take it."""
    open_adapter(job.adapter)
    with new_folder(Path(job.out)) as folder:
        fuser().fuse(job, folder, stage)
        files = files_below(folder)
        digests = {name: digest_of(path) for name, path in files.items()}
        size = sum(path.stat().st_size for path in files.values())
    notes = ("the base was quantised by MLX; the export is in full precision, and answers as the trained model did",)
    return Made(job.out, size, folder_digest(digests), notes)
