"""The name of every file in an output folder and in a run directory, and the shape of a checkpoint's manifest.

No other file spells a name from here. The tree is drawn in docs/run-directory.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import msgspec

CHECKPOINT_SCHEMA = 1
MANIFEST = "manifest.json"
PARTIAL = ".partial"
QUARANTINE = ".quarantine"

_CHECKPOINT = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class OutputDir:
    """The folder that the user names with --output. Several runs share it."""

    path: Path

    @property
    def history(self) -> Path:
        return self.path / "run_history.json"

    @property
    def history_lock(self) -> Path:
        return self.path / ".run_history.lock"

    @property
    def lock(self) -> Path:
        """Held by the supervisor that trains into this folder."""
        return self.path / ".backpropagate.lock"

    @property
    def lora(self) -> Path:
        """The newest finished run's adapter."""
        return self.path / "lora"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def cache(self) -> Path:
        """Prepared data sets, one folder per digest."""
        return self.path / "cache"

    @property
    def exports(self) -> Path:
        """Where an export goes that was not told where: one folder per run or adapter."""
        return self.path / "exports"

    @property
    def mlruns(self) -> Path:
        """MLflow's folder of files, where no server or database is named."""
        return self.path / "mlruns"

    def run(self, run_id: str) -> RunDir:
        return RunDir(self.runs / run_id)


@dataclass(frozen=True, slots=True)
class RunDir:
    """`<output>/runs/<run-id>/`."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def output(self) -> OutputDir:
        return OutputDir(self.path.parent.parent)

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def lock(self) -> Path:
        """Held by the supervisor of this run."""
        return self.path / ".run.lock"

    @property
    def stop_request(self) -> Path:
        """What another process asks of the supervisor, which takes it away as soon as it is heard."""
        return self.path / "stop-request.json"

    @property
    def stop_request_taken(self) -> Path:
        """The same for the moment in which it is read."""
        return self.path / f"stop-request.json{PARTIAL}"

    @property
    def log(self) -> Path:
        return self.path / "runner.log"

    @property
    def standby_log(self) -> Path:
        """What the newest runner that stood by wrote until it got its Job."""
        return self.path / "standby.log"

    @property
    def supervisor_log(self) -> Path:
        """What a supervisor without a terminal says: progress lines, and as its last line why it could not begin."""
        return self.path / "supervisor.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def checkpoint_register(self) -> Path:
        """What is known of checkpoints beyond their manifests: validation losses, and which are to stay."""
        return self.path / "checkpoints.json"

    @property
    def staging(self) -> Path:
        """Where the child writes what is not yet complete: on the same file system as `checkpoints`."""
        return self.path / "staging"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def begun_from(self) -> Path:
        """Which adapter this run began from, where it began from one: another must not take its place."""
        return self.path / "begun-from.json"

    @property
    def merges(self) -> Path:
        """Of a campaign: one folder for what was merged after each run."""
        return self.path / "merges"

    def merge(self, link: int) -> Path:
        """`run-001`, …: `merged/`, `next/`, the state, and combine.json."""
        return self.merges / f"run-{link:03d}"

    def merge_by(self, link: int, rule: str) -> Path:
        """`run-005-ties`, …: the same by another rule, for `--merge auto` to choose from."""
        return self.merges / f"run-{link:03d}-{rule}"

    def merge_again(self, rule: str) -> Path:
        """`again-ties`, …: what `backprop merge` made of the runs afterwards."""
        return self.merges / f"again-{rule}"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        """W&B names it itself, and keeps its own copy of the run in it."""
        return self.path / "wandb"

    def told(self, tracker: str) -> Path:
        """What this tracker has been told already."""
        return self.path / "trackers" / f"{tracker}.json"

    @property
    def trackers_log(self) -> Path:
        """What the trackers' processes print."""
        return self.path / "trackers.log"

    @property
    def campaign_report(self) -> Path:
        """Of a campaign: the scores and what they come to, as JSON."""
        return self.path / "campaign.json"

    def campaign_plot(self, suffix: str) -> Path:
        return self.path / f"campaign.{suffix}"

    @property
    def faults(self) -> Path:
        """One file for each child that failed: what it died of."""
        return self.path / "faults"

    def fault(self, number: int) -> Path:
        """`001.json`, …: counted through the whole run, over all its supervisors."""
        return self.faults / f"{number:03d}.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / checkpoint_name(step)


@dataclass(frozen=True, slots=True)
class ExportDir:
    """The destination of an export. Several runs may share it."""

    path: Path

    def work(self, run_id: str) -> Path:
        """Where the stages of one run's export work, on the disk of the result; gone when it is finished."""
        return self.path / f".export-{run_id[:8]}{PARTIAL}"

    def result(self, name: str, format: str, quantization: str | None) -> Path:
        """`NAME-Q4_K_M.gguf`, `NAME-lora-F32.gguf`, `NAME-merged/`, `NAME-mlx/`, `NAME-lora/`."""
        if format == "gguf":
            return self.path / f"{name}-{(quantization or '').upper()}.gguf"
        if format == "lora-gguf":
            return self.path / f"{name}-lora-F32.gguf"
        return self.path / f"{name}-{format}"

    @staticmethod
    def report(result: Path) -> Path:
        """The proof and the provenance, as JSON, beside the result."""
        return result.with_name(f"{result.name}.export.json")

    @staticmethod
    def rejected(result: Path) -> Path:
        """Where a result goes whose proof failed."""
        return result.with_name(f"{result.name}.rejected")


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


def checkpoint_step(name: str) -> int | None:
    """The step in a checkpoint folder's name; None for anything else (partial, quarantined, foreign)."""
    match = _CHECKPOINT.fullmatch(name)
    return int(match[1]) if match else None


class FileEntry(msgspec.Struct, frozen=True):
    """One file of a checkpoint."""

    size: int
    sha256: str


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How the evaluations of a run stood at a checkpoint: a resume goes on counting from there."""

    step: int  # of the newest evaluation
    loss: float | None  # its loss; None: it was not finite
    best_step: int = 0  # 0: there is no best one
    best_loss: float | None = None
    worse: int = 0  # evaluations in a row that were no better than the best before them


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`, written last. A folder without one, or with one that does not verify, is not a checkpoint."""

    schema: int = CHECKPOINT_SCHEMA
    run_id: str
    step: int
    total_steps: int
    samples_seen: int
    order: int
    micro_batch: int
    accumulation: int
    data_digest: str
    spec_digest: str  # over what must not change between attempts (see `spec_digest`)
    backend: str
    loss: float | None = None
    created: str = ""
    packages: dict[str, str] = {}
    # What `auto` came to, so that a resume on another machine or another day does not choose anew; empty: not known.
    optimizer: str = ""
    precision: str = ""
    model_revision: str = ""  # the commit of a hub's model
    standing: Standing | None = None  # None: nothing was evaluated yet
    best_step: int = 0  # of a result that was chosen by its held-out loss: the step whose weights it has
    files: dict[str, FileEntry] = {}
