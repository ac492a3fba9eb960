"""The stages of an export as those who watch see them: how far, how quick, how long still; and in words. Pure.

Times are those of the events (seconds since 1970), sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from backpropagate import events
from backpropagate.events import Event
from backpropagate.measured import Check

# What counts in bytes; the other stages count prompts, or nothing.
_MOVING = frozenset({"fetch", "merge", "convert", "quantize", "register", "place", "push"})
_DOING = {
    "fetch": "fetching",
    "preflight": "looking whether the export can work",
    "reference": "asking the trained model",
    "merged-reference": "asking the merged model",
    "merge": "merging",
    "convert": "converting",
    "quantize": "quantizing",
    "prove": "comparing the export with the trained model",
    "register": "giving it to Ollama",
    "lmstudio": "placing it for LM Studio",
    "place": "placing it",
    "push": "pushing it to the hub",
    "combine": "merging the runs",
    "evaluate": "scoring on held-out rows",
    "choose": "choosing among the merges",
    "plot": "plotting the scores",
}
_JUDGED_AFTER = 0.5  # seconds of a phase before its speed says anything


@dataclass(slots=True)
class StageView:
    """The stage that is under way, as far as its events have told."""

    name: str = ""  # empty: none is
    phase: str = ""
    done: int = 0
    total: int = 0
    detail: str = ""
    now: float = 0.0
    _began: tuple[float, int] = (0.0, 0)  # of the phase: when, and with how much done

    def see(self, event: Event) -> None:
        self.now = event.time
        match event:
            case events.StageStarted():
                self.name, self.phase, self.done, self.total, self.detail = event.stage, "", 0, 0, ""
            case events.PhaseEntered():
                if event.phase != self.phase or event.done < self.done:
                    self._began = (event.time, event.done)
                self.phase, self.done, self.total, self.detail = event.phase, event.done, event.total, event.detail
            case events.StageEnded() | events.AttemptStarted() | events.RunEnded():
                self.name = ""
            case _:
                pass

    @property
    def speed(self) -> float | None:
        """Bytes a second in this phase; None while it cannot be known, or where nothing is moved."""
        when, done = self._began
        seconds = self.now - when
        if self.phase not in _MOVING or seconds < _JUDGED_AFTER or self.done <= done:
            return None
        return (self.done - done) / seconds

    @property
    def remaining(self) -> float | None:
        """Seconds to the end of this phase, at its speed so far."""
        if self.speed is None or self.total <= self.done:
            return None
        return (self.total - self.done) / self.speed

    def __str__(self) -> str:
        """`converting 38 %  6.1 of 16.2 MB  12.0 MB/s`."""
        doing = _DOING[self.phase] if self.phase in _MOVING else _doing(self.name)
        parts = [f"{doing} {100 * self.done // self.total} %" if self.total else doing]
        if self.total and self.phase in _MOVING:
            parts.append(f"{size(self.done)} of {size(self.total)}")
        if self.speed is not None:
            parts.append(f"{size(self.speed)}/s")
        return "  ".join(parts)


def size(count: float) -> str:
    """`812 B`, `16.2 MB`, `4.1 GB`: powers of 1000, as disks are sold and downloads told."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def begun(event: events.StageStarted) -> str:
    """What a stage does; nothing for one that is only tried again."""
    return _doing(event.stage) if event.attempt == 1 else ""


def _doing(stage: str) -> str:
    """A campaign's stages have the number of the run in their names: `combine-003`, `combine-003-ties`."""
    name, _, rest = stage.partition("-")
    if not rest[:3].isdecimal():
        return _DOING.get(stage, stage)
    _, _, rule = rest.partition("-")
    return _DOING.get(name, stage) + (f" by {rule}" if rule else "")


def ended(event: events.StageEnded) -> str:
    """`convert      16.2 MB  3 s`, with a line for each thing to be known."""
    if event.stage == "train":
        return f"the adapter is in {event.path}"
    moved = size(event.bytes) if event.bytes else ""
    line = f"{event.stage:<16} {moved:>9}  {event.seconds:.0f} s"
    return "\n".join([f"{line}  {event.detail}".rstrip(), *(f"  {note}" for note in event.notes)])


def route(event: events.RouteFound) -> str:
    """`export: LlamaForCausalLM, converted to f16, quantized by Ollama, about 4.1 GB`."""
    parts = [event.architecture]
    if event.converter:
        parts.append(
            f"converted to {event.type}" + (" by llama.cpp's converter" if event.converter == "official" else "")
        )
    if event.quantizer:
        parts.append(f"quantized by {'Ollama' if event.quantizer == 'ollama' else 'llama.cpp'}")
    if event.bytes:
        parts.append(f"about {size(event.bytes)}")
    return "export: " + ", ".join(parts)


def proof(event: events.ExportProved) -> str:
    """The proof as a short table: one line for each check, measured against its bound."""
    read = {"weights": "read", "text": "weights not compared"}.get(event.verifier, "run")
    asked = f", {event.prompts} prompts" if event.prompts else ""
    head = f"proof {'passed' if event.passed else 'FAILED'} ({read}{asked})"
    return "\n".join([head, *(f"  {_check(check)}".rstrip() for check in event.checks)])


def _check(check: Check) -> str:
    if check.value is None:
        measured = "yes" if check.passed else "NO"
    else:
        bound = "" if check.bound is None else f" (bound {check.bound:.4g})"
        measured = f"{check.value:.4g}{bound}{'' if check.passed else ' FAILED'}"
    return f"{check.name:<16} {measured}  {check.detail}"
