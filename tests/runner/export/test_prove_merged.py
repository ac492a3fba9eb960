"""The proof of a merged model: two references of transformers side by side, and the tensors themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.jobs import MergeJob, ProveJob
from backpropagate_protocol.measured import Proof
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.merge import merge
from backpropagate_runner.export.prove import prove
from backpropagate_runner.export.tensor_file import TensorFile
from tests.backends.torch_runs import FOREIGN_WARNINGS
from tests.runner.export.heard import Heard
from tests.runner.export.lesson import Lesson, refer, teach, warmed

pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return warmed()


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return teach(tmp_path_factory.mktemp("lesson"))


@pytest.fixture(scope="module")
def merged(lesson: Lesson) -> Path:
    out = lesson.folder / "merged"
    job = MergeJob(model=lesson.model, adapter=str(lesson.adapter), out=str(out), memory=64)
    merge(job, Heard(Phase.MERGE).stage)
    return out


def proof(cpu: CpuBackend, lesson: Lesson, model: Path, folder: Path) -> Proof:
    """`model` is asked the same, and what it says is compared."""
    refer(cpu, ModelSpec(name="merged", path=str(model), load_in_4bit=False), None, folder / "again")
    job = ProveJob(
        reference=str(lesson.reference),
        target=str(folder / "again"),
        kind="merged",
        quantization="",
        model=lesson.model,
        adapter=str(lesson.adapter),
        verifier="weights",
    )
    return prove(job, Heard(Phase.PROVE).stage)


def failed(made: Proof) -> set[str]:
    assert made.passed == all(check.passed for check in made.checks)
    return {check.name for check in made.checks if not check.passed}


def test_an_honest_merge_passes(cpu: CpuBackend, lesson: Lesson, merged: Path, tmp_path: Path) -> None:
    made = proof(cpu, lesson, merged, tmp_path)
    assert failed(made) == set(), made
    assert made.verifier == "transformers"
    assert {"template", "tokens", "tensors", "relative_error", "kl", "agreement", "answers"} == {
        check.name for check in made.checks
    }
    answers = next(check for check in made.checks if check.name == "answers")
    assert answers.value == 1.0
    assert made.positions > 20


def test_the_base_alone_is_caught(cpu: CpuBackend, lesson: Lesson, tmp_path: Path) -> None:
    made = proof(cpu, lesson, Path(lesson.model.path), tmp_path)
    assert {"tensors", "relative_error", "kl", "answers"} <= failed(made)


def test_a_tensor_of_zeros_is_caught(cpu: CpuBackend, lesson: Lesson, merged: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(merged, tmp_path / "broken")
    [weights] = broken.glob("*.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = TensorFile(weights).tensors[name]
    whole = weights.read_bytes()
    stored = tensor.read().tobytes()
    assert whole.count(stored) == 1
    weights.write_bytes(whole.replace(stored, bytes(len(stored))))
    made = proof(cpu, lesson, broken, tmp_path)
    assert {"tensors", "relative_error"} <= failed(made)


def test_another_template_is_caught(cpu: CpuBackend, lesson: Lesson, merged: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(merged, tmp_path / "broken")
    template = broken / "chat_template.jinja"
    template.write_text(template.read_text().replace("user", "User") + "{# another #}")
    assert "template" in failed(proof(cpu, lesson, broken, tmp_path))


def test_swapped_tokens_are_caught(cpu: CpuBackend, lesson: Lesson, merged: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(merged, tmp_path / "broken")
    file = broken / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["o"] = vocabulary["o"], vocabulary["e"]
    file.write_text(json.dumps(tokenizer))
    assert "tokens" in failed(proof(cpu, lesson, broken, tmp_path))


def test_merging_changed_what_the_adapter_touches_and_nothing_else(lesson: Lesson, merged: Path) -> None:
    """Otherwise the honest proof would compare a model with itself."""
    [weights] = merged.glob("*.safetensors")
    base, made = TensorFile(Path(lesson.model.path) / "model.safetensors").tensors, TensorFile(weights).tensors
    changed = {name for name in base if not np.array_equal(base[name].read(), made[name].read())}
    assert lesson.adapter is not None
    taught = load_file(lesson.adapter / "adapter_model.safetensors")
    assert len(changed) == len(taught) / 2
