"""Asking a model, with and without what it was taught."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import ModelLoadError, UserInputError
from backpropagate_protocol.jobs import GenerateJob
from backpropagate_protocol.prepared import Prepared, PreparedWriter
from backpropagate_protocol.spec import ModelSpec
from tests.backends.torch_runs import FOREIGN_WARNINGS, run
from tests.backends.torch_session import make_job

pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

PROMPT = "What is the capital of France?"


@pytest.fixture(scope="module")
def adapter(cpu: CpuBackend, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Taught one answer until it knows it."""
    folder = tmp_path_factory.mktemp("lesson")
    tokenizer = cpu.tokenizer(ModelSpec(name="tiny", path=str(tiny)))
    writer = PreparedWriter(folder / "data")
    for _ in range(4):
        messages: list[dict[str, object]] = [
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": "Paris."},
        ]
        writer.add(*tokenizer.chat(messages, None))
    writer.commit(key="lesson", skipped=0, truncated=0, format="messages", source_digest="lesson")
    job = make_job(tiny, steps=60)
    train = msgspec.structs.replace(job.spec.train, learning_rate=1e-2)
    taught = msgspec.structs.replace(job, spec=msgspec.structs.replace(job.spec, train=train))
    return Path(run(cpu, taught, Prepared(folder / "data"), folder).done.adapter)


def ask(cpu: CpuBackend, model: Path, adapter: Path | None, **wishes: float) -> str:
    job = GenerateJob(
        model=ModelSpec(name="tiny", path=str(model)),
        adapter=str(adapter) if adapter else None,
        prompts=(PROMPT,),
        max_new_tokens=16,
    )
    return cpu.generate(msgspec.structs.replace(job, **wishes))[0]


def test_a_taught_model_gives_the_taught_answer_and_its_base_does_not(
    cpu: CpuBackend, tiny: Path, adapter: Path
) -> None:
    assert ask(cpu, tiny, adapter) == "Paris."
    assert ask(cpu, tiny, None) != "Paris."


def test_sampling_is_repeatable_by_its_seed(cpu: CpuBackend, tiny: Path) -> None:
    first = ask(cpu, tiny, None, temperature=1.5, seed=1)
    assert ask(cpu, tiny, None, temperature=1.5, seed=1) == first
    assert ask(cpu, tiny, None, temperature=1.5, seed=2) != first


def test_a_folder_without_an_adapter_is_refused(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="holds no adapter"):
        ask(cpu, tiny, tmp_path)


def test_an_adapter_of_another_model_is_refused(cpu: CpuBackend, adapter: Path, tmp_path: Path) -> None:
    from tests.backends.tiny_model import make_model

    with pytest.raises(ModelLoadError, match="cannot be put on this model"):
        ask(cpu, make_model(tmp_path / "narrow", hidden=32), adapter)


def test_a_model_without_a_template_is_asked_as_it_is(cpu: CpuBackend, tmp_path: Path) -> None:
    from tests.backends.tiny_model import make_model

    assert isinstance(ask(cpu, make_model(tmp_path / "plain", template=None), None), str)
