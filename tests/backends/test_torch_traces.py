"""Reasoning traces and pairs under the chat templates of real models: what is learnt has the trace, or the row is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from trl import chat_template_utils

from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.spec import DataSpec, ModelSpec
from tests.runner.prepared_rows import made, opened, written

TEMPLATES = Path(chat_template_utils.__file__).parent / "chat_templates"
ROW = {"question": "2 and 3?", "answer": "<think>\nI add two and three.\n</think>\n\nFive."}


def under(template: str, tiny: Path, folder: Path) -> ModelSpec:
    """The tiny model with the template of another."""
    source = TEMPLATES / f"{template}.jinja"
    if not source.is_file():
        pytest.skip(f"this release of TRL has no {source.name}")
    shutil.copytree(tiny, folder / template)
    (folder / template / "chat_template.jinja").write_text(source.read_text())
    return ModelSpec(name=template, path=str(folder / template))


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3", "qwen3_6", "qwen3_8"])
def test_a_trace_is_learnt_as_it_stands(cpu: CpuBackend, tiny: Path, tmp_path: Path, template: str) -> None:
    tokenizer = cpu.tokenizer(under(template, tiny, tmp_path))
    data = DataSpec(source=written(tmp_path / "r.jsonl", ROW), reasoning_trace=True, trace_tokens=(5, 60))
    ids, trained = opened(made(data, tmp_path / "cache", tokenizer=tokenizer)).row(0)
    learnt = tokenizer.decode([token for token, flag in zip(ids, trained, strict=True) if flag])
    assert learnt.count("<think>") == learnt.count("</think>") == 1
    assert ROW["answer"] in learnt


def test_a_template_that_takes_traces_out_of_earlier_answers_is_refused(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    tokenizer = cpu.tokenizer(under("nemotron_3_nano", tiny, tmp_path))
    asked = {"role": "user", "content": ROW["question"]}
    said = {"role": "assistant", "content": ROW["answer"]}
    data = DataSpec(source=written(tmp_path / "r.jsonl", {"messages": [asked, said] * 2}), reasoning_trace=True)
    with pytest.raises(DatasetError, match="takes <think>…</think> out of what is learnt"):
        made(data, tmp_path / "cache", tokenizer=tokenizer)
    last = {"prompt": [asked, {"role": "assistant", "content": "Five."}, asked], "completion": [said]}
    data = DataSpec(source=written(tmp_path / "l.jsonl", last), reasoning_trace=True)
    assert made(data, tmp_path / "cache", tokenizer=tokenizer).rows == 1


@pytest.mark.parametrize("template", ["qwen2_5", "qwen3"])
def test_both_answers_of_a_pair_follow_the_same_tokens(
    cpu: CpuBackend, tiny: Path, tmp_path: Path, template: str
) -> None:
    tokenizer = cpu.tokenizer(under(template, tiny, tmp_path))
    row = {"prompt": "2 and 3?", "chosen": "Five.", "rejected": "\nSix, I think."}
    data = DataSpec(source=written(tmp_path / "p.jsonl", row), method="orpo")
    (chosen, learnt), (rejected, too) = opened(made(data, tmp_path / "cache", tokenizer=tokenizer)).pair(0)
    prompt = bytes(learnt).index(1)
    assert list(chosen[:prompt]) == list(rejected[:prompt])
    assert not any(too[:prompt])
    assert "2 and 3?" in tokenizer.decode(list(chosen[:prompt]))
