"""Reasoning traces: kept as text and learnt, dropped by their length with a count, never lost to a template without a word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from backpropagate_backends.toy_tokenizer import BytesTokenizer
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.prepared import Row
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.example import Chat
from backpropagate_runner.traces import Traces
from tests.runner.prepared_rows import made, opened, text, texts, written


def asked(answer: str) -> dict[str, str]:
    return {"question": "q", "answer": answer}


def traced(source: str, **wishes: object) -> DataSpec:
    return DataSpec(source=source, reasoning_trace=True, **{"trace_tokens": (3, 6), **wishes})  # type: ignore[arg-type]


def test_a_trace_is_text_like_any_and_carries_loss(tmp_path: Path) -> None:
    ready = made(
        traced(written(tmp_path / "r.jsonl", asked("<think>hmm</think>So.")), train_on="assistant"), tmp_path / "c"
    )
    assert text(opened(ready).row(0))[1] == "<think>hmm</think>So.$"


def test_rows_are_dropped_by_the_band_and_every_reason_is_counted(tmp_path: Path) -> None:
    answers = {
        "no trace": "no_trace",
        "<think></think>x": "empty_trace",
        "<think>ab</think>x": "short_trace",
        "<think>abc</think>x": "",
        "<think>abcdef</think>x": "",
        "<think>abcdefg</think>x": "long_trace",
        "<think>abcd x": "open_trace",
        "abcd</think>x": "open_trace",
        "<think>ab<think>cd</think>x": "open_trace",
    }
    notices: list[str] = []
    ready = made(traced(written(tmp_path / "r.jsonl", *map(asked, answers))), tmp_path / "cache", notices)
    assert ready.rows == 2
    assert ready.dropped == {reason: list(answers.values()).count(reason) for reason in answers.values() if reason}
    assert ready.skipped == 7
    assert "1 with an empty reasoning trace" in notices[0]
    assert "3 with a reasoning trace that does not begin or does not end" in notices[0]


def test_the_traces_of_a_row_are_added_up_and_those_of_the_prompt_are_not(tmp_path: Path) -> None:
    def turns(*answers: str) -> list[dict[str, str]]:
        return [turn for answer in answers for turn in ({"role": "user", "content": "q"}, {"role": "assistant", "content": answer})]  # fmt: skip

    both = {"messages": turns("<think>abc</think>1", "<think>abcd</think>2")}
    last = {
        "prompt": turns("<think>abcdefghi</think>1")[:2] + turns("")[:1],
        "completion": turns("<think>abc</think>2")[1:],
    }
    assert made(traced(written(tmp_path / "b.jsonl", both), trace_tokens=(7, 7)), tmp_path / "c").rows == 1
    assert made(traced(written(tmp_path / "l.jsonl", last), trace_tokens=(3, 3)), tmp_path / "c").rows == 1


def test_reasoning_beside_the_content_is_written_into_it(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "So.", "reasoning_content": "hmm"}
    row = {"messages": [{"role": "user", "content": "q"}, answer]}
    assert texts(made(traced(written(tmp_path / "r.jsonl", row)), tmp_path / "c")) == [
        "user: q$assistant: <think>\nhmm\n</think>\n\nSo.$"
    ]


def test_a_trace_that_is_cut_is_dropped_and_one_whose_answer_is_cut_is_not(tmp_path: Path) -> None:
    rows = [asked("<think>abcd</think>" + "x" * 40), asked("<think>abcd</think>x")]
    whole = len("user: q$assistant: <think>abcd</think>")
    source = written(tmp_path / "r.jsonl", *rows)
    fits = made(traced(source, max_length=whole + 2), tmp_path / "c")
    assert (fits.rows, fits.truncated, fits.dropped) == (2, 1, {})
    with pytest.raises(DatasetError, match="2 whose reasoning trace does not end within --max-length"):
        made(traced(source, max_length=whole - 1), tmp_path / "c")


def test_the_length_is_that_of_the_row_s_own_tokens_for_texts_too(tmp_path: Path) -> None:
    texts_of = [{"text": "Q <think>abcd</think> A"}, {"text": "Q A"}]
    pairs_of = [
        {"prompt": "Q", "completion": "<think>abcd</think> A"},
        {"prompt": "Q<think>abcd</think>", "completion": "A"},
    ]
    for number, rows in enumerate((texts_of, pairs_of)):
        ready = made(traced(written(tmp_path / f"{number}.jsonl", *rows)), tmp_path / "c")
        assert (ready.rows, ready.dropped) == (1, {"no_trace": 1})


class Stripping(BytesTokenizer):
    """A template that shows no traces, as some do with what was said before."""

    digest = "stripping"

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        shown = [{**turn, "content": re.sub("<think>.*</think>", "", str(turn["content"]))} for turn in messages]
        return super().chat(shown, tools)


class Framing(BytesTokenizer):
    """A template that writes the marks itself, around reasoning that stands beside the content."""

    digest = "framing"

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        shown = [
            {**turn, "content": f"<think>{turn.get('reasoning_content', '')}</think>{turn['content']}"}
            if turn["role"] == "assistant"
            else turn
            for turn in messages
        ]
        return super().chat(shown, tools)


def test_a_template_that_takes_traces_out_is_refused(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", asked("<think>hmm</think>So."), asked("<think>umm</think>So."))
    with pytest.raises(DatasetError) as caught:
        made(traced(source), tmp_path / "c", tokenizer=Stripping())
    assert caught.value.code == "INPUT_DATASET_VALIDATION_FAILED"
    assert "line 1: the model's chat template takes <think>…</think> out of what is learnt" in caught.value.message
    assert made(DataSpec(source=source), tmp_path / "c", tokenizer=Stripping()).rows == 2


def test_a_template_with_marks_of_its_own_gets_the_reasoning_beside_the_content(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", asked("<think>hmm</think>So."))
    assert texts(made(traced(source), tmp_path / "c", tokenizer=Framing())) == [
        "user: q$assistant: <think>hmm</think>So.$"
    ]


def test_the_band_is_part_of_what_decides_the_prepared_set(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", asked("<think>hmm</think>So."))
    specs = [DataSpec(source=source), traced(source), traced(source, trace_tokens=(2, 6))]
    assert len({made(spec, tmp_path / "c").path for spec in specs}) == 3


def test_a_data_set_without_any_trace_is_told_what_its_answers_need(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        made(traced(written(tmp_path / "r.jsonl", asked("So."))), tmp_path / "cache")
    assert "<think>…</think>" in str(caught.value.suggestion)
    assert "--reasoning-trace" in str(caught.value.suggestion)


class TalksOnly(BytesTokenizer):
    """Of a model without an end of text: it takes conversations only."""

    def text(self, text: str) -> Row:
        raise AssertionError


def test_rows_without_traces_ask_nothing_of_the_tokenizer() -> None:
    assert Traces(TalksOnly(), (0, 9)).of(Chat([{"role": "assistant", "content": "So."}])) == []
