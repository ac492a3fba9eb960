"""What is done of a run's stages besides the training, from its events: those of earlier supervisors, then our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from backpropagate.events import CampaignExtended, Event, Exported, ExportProved, RouteFound, StageEnded, StageStarted
from backpropagate_protocol.messages import ExportRoute

TRAINED = "train"  # the training as a stage before others: its adapter is published


@dataclass(slots=True)
class Past:
    """Feed it every event, in order; it may watch a run as a sink."""

    ended: dict[str, StageEnded] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)  # children, by stage
    versions: dict[str, str] = field(default_factory=dict)
    route: ExportRoute | None = None
    proof: ExportProved | None = None
    exported: Exported | None = None

    def event(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._begin_anew(event.stage)
                self.attempts[event.stage] = max(event.attempt, self.attempts.get(event.stage, 0))
                self.versions |= event.versions
            case StageEnded():
                self.ended[event.stage] = event
            case RouteFound():
                self.route = _route(event)
            case ExportProved():
                self.proof = event
            case Exported():
                self.exported = event
            case CampaignExtended():  # what was published and exported is no longer what the campaign comes to
                self.ended.clear()
                self.route = self.proof = self.exported = None
            case _:
                pass

    def close(self) -> None: ...

    def _begin_anew(self, stage: str) -> None:
        """What came after an earlier time of this stage was made of that time's output; the training was not."""
        if stage not in self.ended:
            return
        at = list(self.ended).index(stage)
        for later in list(self.ended)[at:]:
            if later != TRAINED:
                del self.ended[later]

    def forget(self) -> None:
        """Nothing of an export is done; the training still is."""
        self.ended = {stage: ended for stage, ended in self.ended.items() if stage == TRAINED}
        self.route, self.proof, self.exported = None, None, None

    def has(self, stage: str, output: str | None) -> bool:
        """Whether the stage is done and its output, if it has one, is still there."""
        return stage in self.ended and (output is None or Path(output).exists())


def _route(event: RouteFound) -> ExportRoute:
    return ExportRoute(
        architecture=event.architecture,
        parameters=event.parameters,
        converter=event.converter,
        converter_folder=event.converter_folder,
        type=event.type,
        quantizer=event.quantizer,
        verifier=event.verifier,
        bytes=event.bytes,
        work_bytes=event.work_bytes,
        free_bytes=event.free_bytes,
        ollama_version=event.ollama_version,
        notes=event.notes,
    )
