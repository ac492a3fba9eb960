"""The proof that an export holds what the adapter changed, be it ever so little, at every quantization."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.jobs import ProveJob
from backpropagate_protocol.measured import Check, Proof
from backpropagate_protocol.messages import Phase
from backpropagate_runner.export.prove import prove
from backpropagate_runner.export.prove_change import Changes, Compared
from tests.backends.torch_runs import FOREIGN_WARNINGS
from tests.runner.export.heard import Heard
from tests.runner.export.lesson import Lesson, nudge, warmed

pytest.importorskip("llama_cpp")
pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

BOTH = pytest.mark.parametrize("verifier", ["llama", "weights"])
EVERY = pytest.mark.parametrize("quantization", QUANTIZATIONS)


@pytest.fixture(scope="module", params=[0.005, 0.02], ids=["half a percent", "two percent"])
def lesson(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return nudge(warmed(), tmp_path_factory.mktemp("nudged"), request.param)


@pytest.fixture(scope="module")
def broken(lesson: Lesson) -> Callable[[str], Lesson]:
    """The same with an export that had another adapter than the proof."""
    made: dict[str, Lesson] = {}

    def find(fault: str) -> Lesson:
        if fault not in made:
            folder = lesson.folder / fault.replace(" ", "-")
            folder.mkdir()
            made[fault] = dataclasses.replace(lesson, adapter=FAULTS[fault](lesson, folder), folder=folder)
        return made[fault]

    return find


def lost(lesson: Lesson, folder: Path) -> None:
    return None


def rescaled(lesson: Lesson, folder: Path) -> Path:
    """alpha as if it were not divided by the rank's root: half of what it has to be."""
    assert lesson.adapter is not None
    other = shutil.copytree(lesson.adapter, folder / "adapter")
    config = json.loads((other / "adapter_config.json").read_text())
    config["lora_alpha"] /= 2
    (other / "adapter_config.json").write_text(json.dumps(config))
    return other


def one_lost(lesson: Lesson, folder: Path) -> Path:
    """Without what was learnt by one module."""
    from safetensors.numpy import load_file, save_file

    assert lesson.adapter is not None
    other = shutil.copytree(lesson.adapter, folder / "adapter")
    weights = load_file(other / "adapter_model.safetensors")
    name = next(name for name in weights if "layers.1.mlp.down_proj.lora_B" in name)
    weights[name][:] = 0
    save_file(weights, other / "adapter_model.safetensors")
    return other


FAULTS: dict[str, Callable[[Lesson, Path], Path | None]] = {
    "no adapter": lost,
    "half the scale": rescaled,
}


def proof(lesson: Lesson, target: Path, quantization: str, verifier: str) -> Proof:
    job = ProveJob(
        reference=str(lesson.reference),
        target=str(target),
        kind="gguf",
        quantization=quantization,
        model=lesson.model,
        adapter=str(lesson.adapter),
        verifier=verifier,
    )
    return prove(job, Heard(Phase.PROVE).stage)


def failed(made: Proof) -> set[str]:
    return {check.name for check in made.checks if not check.passed}


def adapter_check(made: Proof) -> Check:
    return next(check for check in made.checks if check.name == "adapter")


@BOTH
@EVERY
def test_an_honest_export_of_a_small_change_passes(lesson: Lesson, quantization: str, verifier: str) -> None:
    made = proof(lesson, lesson.made(quantization), quantization, verifier)
    assert failed(made) == set(), made
    share = adapter_check(made).value
    assert share is not None
    assert abs(share - 1) < 0.15


@BOTH
@EVERY
@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_or_wrongly_scaled_adapter_is_caught(
    lesson: Lesson, broken: Callable[[str], Lesson], fault: str, quantization: str, verifier: str
) -> None:
    made = proof(lesson, broken(fault).made(quantization), quantization, verifier)
    assert "adapter" in failed(made), made


@BOTH
@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_the_change_of_one_module_is_missed(lesson: Lesson, tmp_path: Path, quantization: str, verifier: str) -> None:
    other = dataclasses.replace(lesson, adapter=one_lost(lesson, tmp_path), folder=tmp_path)
    made = proof(lesson, other.made(quantization), quantization, verifier)
    assert "adapter" in failed(made)
    assert "blk.1.ffn_down.weight" in adapter_check(made).detail


def test_a_change_below_all_rounding_is_not_judged_and_that_is_said() -> None:
    random = np.random.default_rng(0)
    before = random.normal(size=(64, 64))
    one = Compared()
    one.add(before, before + 1e-9, before + random.normal(size=(64, 64)) / 10)
    changes = Changes()
    changes.add("blk.0.attn_q.weight", one)
    [check] = changes.checks()
    assert (check.passed, check.value) == (True, None)
    assert "too little" in check.detail


def test_without_an_adapter_there_is_nothing_to_miss() -> None:
    assert Changes().checks() == []
