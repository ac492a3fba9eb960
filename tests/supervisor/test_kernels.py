"""What a training may choose by itself is tried out once, on a card, and remembered."""

from __future__ import annotations

from pathlib import Path

import anyio
import msgspec
import pytest

from backpropagate.drive.kernels import Kernels
from backpropagate.keep import probed
from backpropagate_protocol.errors import TrainingError
from backpropagate_protocol.probes import BROKEN, MISSING, WORKS, ProbeReport
from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec, TrainSpec

PACKAGES = {"torch": "2.13.0", "flash-attn": "2.8", "liger-kernel": "0.6"}
PROBED = ("varlen", "flash_attention_2", "liger")
SPEC = RunSpec(
    run_id="a",
    created="",
    backend="auto",
    output="/output",
    model=ModelSpec(name="tiny", path="tiny"),
    data=DataSpec(source="rows.jsonl"),
    train=TrainSpec(steps=3),
)

SILENT = TrainingError("it did not answer within 120 s", code="RUNTIME_CHILD_DIED")


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))


class Probes:
    """Answers as it was told to; whatever has no answer ends with this error."""

    def __init__(self, error: Exception = SILENT, **states: str) -> None:
        self._error, self._states = error, states
        self.tried: list[str] = []

    async def __call__(self, name: str) -> ProbeReport:
        self.tried.append(name)
        if name not in self._states:
            raise self._error
        return ProbeReport(name, self._states[name], "")


def chosen(
    probes: Probes, card: str = "A100", spec: RunSpec = SPEC, day: str = "Monday"
) -> tuple[tuple[str, ...], list[str]]:
    """What two children of one run get, and what was told meanwhile."""
    told: list[str] = []
    kernels = Kernels(spec, told.append, probes, lambda: day)

    async def main() -> tuple[str, ...]:
        first = await kernels.working(PACKAGES, card)
        assert await kernels.working(PACKAGES, card) == first
        return first

    return anyio.run(main), told


def test_they_are_tried_once_for_an_environment_and_a_card() -> None:
    first, again = Probes(varlen=WORKS, flash_attention_2=BROKEN, liger=WORKS), Probes()
    found, told = chosen(first)
    assert (found, first.tried) == (("varlen", "liger"), ["varlen", "flash_attention_2", "liger"])
    assert told == ["trying out what works on this A100: varlen, flash_attention_2, liger"]
    assert chosen(again) == (("varlen", "liger"), [])
    assert chosen(other := Probes(varlen=MISSING, flash_attention_2=MISSING, liger=MISSING), card="T4")[0] == ()
    assert other.tried
    assert probed.known(None, PACKAGES, "T4") == ()


def test_one_that_hangs_is_left_out_for_the_day_and_tried_again_tomorrow() -> None:
    hangs, same_day = Probes(varlen=WORKS, liger=WORKS), Probes()
    assert chosen(hangs)[0] == ("varlen", "liger")
    assert len(hangs.tried) == 3
    assert chosen(same_day) == (("varlen", "liger"), [])
    assert chosen(tomorrow := Probes(varlen=WORKS, flash_attention_2=WORKS, liger=WORKS), day="Tuesday")[0] == PROBED
    assert len(tomorrow.tried) == 3
    assert chosen(Probes(), day="Monday") == (PROBED, [])  # what all have answered counts for good


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), ExceptionGroup("two at once", [OSError(), ValueError()])],
    ids=["no room to begin", "two errors"],
)
def test_a_probe_that_cannot_be_made_does_not_end_the_run(error: Exception) -> None:
    assert chosen(Probes(error, liger=WORKS))[0] == ("liger",)
    assert probed.known(None, PACKAGES, "A100", "Monday") is None


@pytest.mark.parametrize(
    ("card", "spec"),
    [
        ("", SPEC),
        ("A100", msgspec.structs.replace(SPEC, backend="toy")),
        ("A100", msgspec.structs.replace(SPEC, train=TrainSpec(steps=3, attention="sdpa", liger=False))),
    ],
    ids=["no card", "not on a card", "nothing to choose"],
)
def test_nothing_is_tried_where_nothing_could_be_chosen(card: str, spec: RunSpec) -> None:
    probes = Probes()
    assert chosen(probes, card, spec) == ((), [])
    assert probes.tried == []
