"""What happened in the stages that follow a training, or come instead of one: more lines of `events.jsonl`."""

from __future__ import annotations

import msgspec

from backpropagate.measured import Check
from backpropagate.told import Told


class StageStarted(Told, frozen=True, kw_only=True, tag="stage_started"):
    """A child was given a stage of the chain other than the training. Its progress follows as PhaseEntered."""

    stage: str
    attempt: int
    pid: int
    versions: dict[str, str] = msgspec.field(default_factory=dict)  # of the packages that the child will use


class StageEnded(Told, frozen=True, kw_only=True, tag="stage_ended"):
    """A stage is done: a later supervisor of this run does not do it again if `path` is still there."""

    stage: str
    path: str = ""
    bytes: int = 0
    digest: str = ""
    seconds: float = 0.0
    detail: str = ""  # one line for people
    notes: tuple[str, ...] = ()


class RouteFound(Told, frozen=True, kw_only=True, tag="export_route"):
    """The preflight's answer: what the chain will do. Bytes are estimates of what will lie on the disk."""

    architecture: str
    parameters: int
    converter: str
    converter_folder: str
    type: str
    quantizer: str
    verifier: str
    bytes: int
    work_bytes: int
    free_bytes: int
    ollama_version: str = ""
    notes: tuple[str, ...] = ()


class ExportProved(Told, frozen=True, kw_only=True, tag="export_proved"):
    """What was exported was compared with what was trained."""

    passed: bool
    verifier: str
    checks: tuple[Check, ...]
    prompts: int = 0
    positions: int = 0


class Exported(Told, frozen=True, kw_only=True, tag="exported"):
    """The result is under its final name, with its report beside it."""

    path: str
    bytes: int
    format: str
    quantization: str | None = None
    digest: str = ""
    report: str = ""
