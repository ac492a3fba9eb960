"""Which tokens carry loss: exactly what the assistant says and the end of its turn, in every shape of conversation."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from backpropagate_backends.base import Tokenizer
from backpropagate_backends.cpu import CpuBackend
from backpropagate_protocol.errors import DatasetFormatError, ModelLoadError
from backpropagate_protocol.spec import ModelSpec

Message = dict[str, object]

SYSTEM: Message = {"role": "system", "content": "You are a helpful assistant."}
USER: Message = {"role": "user", "content": "What is the capital of France?"}
ANSWER: Message = {"role": "assistant", "content": "Paris."}
AGAIN: Message = {"role": "user", "content": "Please add two and three."}
FIVE: Message = {"role": "assistant", "content": "Two and three make five."}
CALL: Message = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}],
}
TOOL_ANSWER: Message = {"role": "tool", "content": "5"}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]


def load(cpu: CpuBackend, folder: Path) -> Tokenizer:
    return cpu.tokenizer(ModelSpec(name="tiny", path=str(folder)))


def trained_texts(folder: Path, ids: list[int], flags: list[int]) -> list[str]:
    """The text of each unbroken run of tokens that carry loss."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(ids) == len(flags)
    runs = groupby(zip(ids, flags, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for flag, run in runs if flag]


@pytest.mark.parametrize(
    ("messages", "tools", "expected"),
    [
        ([USER, ANSWER], None, ["Paris.<|im_end|>"]),
        ([SYSTEM, USER, ANSWER], None, ["Paris.<|im_end|>"]),
        ([SYSTEM, USER, ANSWER, AGAIN, FIVE], None, ["Paris.<|im_end|>", "Two and three make five.<|im_end|>"]),
        (
            [SYSTEM, AGAIN, CALL, TOOL_ANSWER, FIVE],
            TOOLS,
            [
                '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call><|im_end|>',
                "Two and three make five.<|im_end|>",
            ],
        ),
    ],
    ids=["one turn", "system", "many turns", "tools"],
)
def test_the_assistant_alone_carries_loss(
    cpu: CpuBackend, tiny: Path, messages: list[dict[str, object]], tools: object | None, expected: list[str]
) -> None:
    ids, flags = load(cpu, tiny).chat(messages, tools)
    assert trained_texts(tiny, ids, flags) == expected


def test_tools_are_rendered_into_the_prompt(cpu: CpuBackend, tiny: Path) -> None:
    tokenizer = load(cpu, tiny)
    with_tools, _ = tokenizer.chat([USER, ANSWER], TOOLS)
    without, _ = tokenizer.chat([USER, ANSWER], None)
    assert len(with_tools) > len(without)


def test_a_completion_carries_loss_and_its_prompt_does_not(cpu: CpuBackend, tiny: Path) -> None:
    ids, flags = load(cpu, tiny).completion("What is the capital of France?", " Paris.")
    assert trained_texts(tiny, ids, flags) == [" Paris.<|im_end|>"]


def test_plain_text_carries_loss_everywhere_and_ends_once(cpu: CpuBackend, tiny: Path) -> None:
    tokenizer = load(cpu, tiny)
    ids, flags = tokenizer.text("The weather in Berlin")
    assert trained_texts(tiny, ids, flags) == ["The weather in Berlin<|im_end|>"]
    assert tokenizer.text("The weather in Berlin<|im_end|>") == (ids, flags)


def test_a_good_template_passes(cpu: CpuBackend, tiny: Path) -> None:
    load(cpu, tiny).check()


def test_a_known_template_without_marks_gets_its_marked_twin(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    from trl.chat_template_utils import qwen2_5_chat_template

    folder = with_template(tiny, tmp_path, qwen2_5_chat_template)
    tokenizer = load(cpu, folder)
    tokenizer.check()
    ids, flags = tokenizer.chat([USER, ANSWER, AGAIN, FIVE], None)
    assert [text.strip() for text in trained_texts(folder, ids, flags)] == [
        "Paris.<|im_end|>",
        "Two and three make five.<|im_end|>",
    ]


def test_a_model_without_a_template_is_refused_for_conversations(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    tokenizer = load(cpu, with_template(tiny, tmp_path, None))
    with pytest.raises(DatasetFormatError, match="no chat template") as caught:
        tokenizer.check()
    assert "instruction-tuned" in caught.value.suggestion
    assert tokenizer.text("The weather")[1]  # plain text needs none


def test_an_unknown_template_without_marks_is_refused(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    with pytest.raises(DatasetFormatError, match="does not mark"):
        load(cpu, with_template(tiny, tmp_path, template)).check()


def test_a_template_that_never_trains_the_end_of_turn_is_refused(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    )
    with pytest.raises(DatasetFormatError, match="never learn to stop"):
        load(cpu, with_template(tiny, tmp_path, template)).check()


def test_the_digest_is_of_the_vocabulary_and_the_template(cpu: CpuBackend, tiny: Path, tmp_path: Path) -> None:
    same = load(cpu, tiny).digest
    assert load(cpu, tiny).digest == same
    assert load(cpu, with_template(tiny, tmp_path, None)).digest != same


def test_the_length_limit_is_the_models_own(cpu: CpuBackend, tiny: Path) -> None:
    assert load(cpu, tiny).max_length == 512


def test_a_folder_without_a_tokenizer_is_a_model_that_cannot_be_loaded(
    cpu: CpuBackend, tiny: Path, tmp_path: Path
) -> None:
    folder = with_template(tiny, tmp_path, None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelLoadError, match="tokenizer"):
        load(cpu, folder)


def with_template(model: Path, folder: Path, template: str | None) -> Path:
    """A copy of the model with another chat template, or with none."""
    copy = folder / "copy"
    copy.mkdir()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (copy / "chat_template.jinja").write_text(template)
    return copy
