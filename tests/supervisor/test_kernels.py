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
SPEC = RunSpec(
    run_id="a",
    created="",
    backend="auto",
    output="/output",
    model=ModelSpec(name="tiny", path="tiny"),
    data=DataSpec(source="rows.jsonl"),
    train=TrainSpec(steps=3),
)


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_STATE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))


class Probes:
    """Answers as it was told to; whatever has no answer died."""

    def __init__(self, **states: str) -> None:
        self._states = states
        self.tried: list[str] = []

    async def __call__(self, name: str) -> ProbeReport:
        self.tried.append(name)
        if name not in self._states:
            raise TrainingError(f"{name} did not answer within 120 s", code="RUNTIME_CHILD_DIED")
        return ProbeReport(name, self._states[name], "")


def chosen(probes: Probes, card: str = "A100", spec: RunSpec = SPEC) -> tuple[tuple[str, ...], list[str]]:
    """What two children of one run get, and what was told meanwhile."""
    told: list[str] = []
    kernels = Kernels(spec, told.append, probes)

    async def main() -> tuple[str, ...]:
        first = await kernels.working(PACKAGES, card)
        assert await kernels.working(PACKAGES, card) == first
        return first

    return anyio.run(main), told


def test_they_are_tried_once_for_an_environment_and_a_card() -> None:
    first, again = Probes(varlen=WORKS, flash_attention_2=BROKEN, liger=WORKS), Probes()
    found, told = chosen(first)
    assert (found, first.tried) == (("varlen", "liger"), ["varlen", "flash_attention_2", "liger"])
    assert told == ["trying out what works on this A100, once for this environment: varlen, flash_attention_2, liger"]
    assert chosen(again) == (("varlen", "liger"), [])
    assert chosen(other := Probes(varlen=MISSING, flash_attention_2=MISSING, liger=MISSING), card="T4")[0] == ()
    assert other.tried
    assert probed.known(None, PACKAGES, "T4") == ()


def test_one_that_hangs_is_left_out_of_this_run_and_tried_by_the_next() -> None:
    hangs = Probes(varlen=WORKS, liger=WORKS)
    assert chosen(hangs)[0] == ("varlen", "liger")
    assert len(hangs.tried) == 3
    assert probed.known(None, PACKAGES, "A100") is None


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
