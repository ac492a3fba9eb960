"""Reads back what each tracker has of a run, from its own files: the curve of the loss, and how the run ended."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from backpropagate_protocol.rundir import RunDir

Curve = list[tuple[int, float]]

_BLOCK = 32768  # of the W&B file, which is a log as LevelDB writes it
_FIRST_HEADER, _HEADER = 7, 7
_WHOLE, _BEGIN, _END = 1, 2, 4


def tensorboard_curve(run_dir: RunDir, name: str) -> Curve:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run_dir.tensorboard), size_guidance={"scalars": 0, "tensors": 0})
    seen.Reload()
    return [(point.step, point.value) for point in seen.Scalars(name)]


def tensorboard_notes(run_dir: RunDir) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    seen = EventAccumulator(str(run_dir.tensorboard), size_guidance={"scalars": 0, "tensors": 0})
    seen.Reload()
    return [note.tensor_proto.string_val[0].decode() for note in seen.Tensors("events")]


@dataclass(frozen=True)
class InMLflow:
    """status: RUNNING, FINISHED, FAILED, KILLED. `description`: what the page of the run shows."""

    status: str
    name: str
    params: dict[str, str]
    description: str
    curve: Curve


def mlflow_runs(run_dir: RunDir, project: str, name: str) -> list[InMLflow]:
    """MLFLOW_ALLOW_FILE_STORE must be set."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=run_dir.output.mlruns.absolute().as_uri())
    experiment = client.get_experiment_by_name(project)
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    return [
        InMLflow(
            status=run.info.status,
            name=run.info.run_name,
            params=run.data.params,
            description=run.data.tags.get("mlflow.note.content", ""),
            curve=[(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)],
        )
        for run in found
    ]


@dataclass(frozen=True)
class InWandb:
    """One offline folder. exit_code: None until the run was finished."""

    run_id: str
    project: str
    config: dict[str, object]
    summary: dict[str, object]
    curve: Curve
    exit_code: int | None


def wandb_runs(run_dir: RunDir, name: str) -> list[InWandb]:
    return [_wandb_run(path, name) for path in sorted(run_dir.wandb.glob("offline-run-*/*.wandb"))]


def _wandb_run(path: Path, name: str) -> InWandb:
    from wandb.proto.wandb_internal_pb2 import Record

    run_id, project, exit_code = "", "", None
    config: dict[str, object] = {}
    summary: dict[str, object] = {}
    curve: Curve = []
    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        match record.WhichOneof("record_type"):
            case "run":
                run_id, project = record.run.run_id, record.run.project
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                if name in row:
                    curve.append((row["step"], row[name]))
            case "summary":
                summary |= {
                    item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update
                }
            case "exit":
                exit_code = record.exit.exit_code
            case _:
                pass
    return InWandb(run_id, project, config, summary, curve, exit_code)


def _records(data: bytes) -> list[bytes]:
    """A record longer than a block comes in pieces."""
    found: list[bytes] = []
    piece, place = b"", _FIRST_HEADER
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + _HEADER])
        content = data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        piece = content if kind in (_WHOLE, _BEGIN) else piece + content
        if kind in (_WHOLE, _END):
            found.append(piece)
    return found


_TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
project, name = sys.argv[1:]
runs = SQLiteStorage.get_runs(project)
rows = [row for run in runs for row in SQLiteStorage.get_logs(project, run)]
print(json.dumps([runs, [(row["step"], row[name]) for row in rows if name in row]]))
"""


def trackio_runs(project: str, name: str) -> tuple[list[str], Curve]:
    """Names of the runs, and the curve of all of them. In a process of its own: TRACKIO_DIR is read when it is imported."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _TRACKIO, project, name],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    runs, curve = json.loads(done.stdout.splitlines()[-1])
    return runs, [(step, value) for step, value in curve]
