"""What validation says of a data set: counted as a training would, and shown as the model sees it."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from backpropagate_backends.base import Tokenizer
from backpropagate_backends.toy_tokenizer import BytesTokenizer
from backpropagate_protocol.about_data import DataReport, Spread
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.messages import Done
from backpropagate_protocol.spec import DataSpec, ModelSpec
from backpropagate_runner.report import report
from backpropagate_runner.statistics import pieces_of, spread
from tests.runner.child import runner
from tests.runner.prepared_rows import made, written

TOY = ModelSpec(name="toy", path="toy")


def reported(data: DataSpec, tokenizer: Tokenizer | None = None, samples: int = 0, max_errors: int = 10) -> DataReport:
    job = ValidateJob(data=data, model=TOY, backend="toy", samples=samples, max_errors=max_errors)
    return report(job, tokenizer=lambda: tokenizer or BytesTokenizer())


def test_percentiles_are_values_that_are_there() -> None:
    assert spread(array("i", range(1, 101))) == Spread(1, 50.5, 50, 90, 95, 99, 100)
    assert spread(array("i", [7])) == Spread(7, 7.0, 7, 7, 7, 7, 7)
    assert spread(array("i")) == Spread(0, 0.0, 0, 0, 0, 0, 0)


def test_the_counts_are_those_of_the_prepared_data(tmp_path: Path) -> None:
    rows = [{"question": "q" * n, "answer": "a" * (2 * n)} for n in range(1, 30)] + [{"question": "q", "answer": "aa"}]
    data = DataSpec(source=written(tmp_path / "r.jsonl", *rows), max_length=60, min_tokens=25, max_tokens=90)
    found, ready = reported(data), made(data, tmp_path / "cache")
    numbers = found.statistics
    assert numbers is not None
    assert (numbers.samples, numbers.tokens, numbers.trained_tokens, numbers.truncated) == (
        (ready.rows, ready.tokens, ready.trained_tokens, ready.truncated)
    )
    assert found.dropped == ready.dropped
    assert (numbers.lengths.most, numbers.max_length) == (60, 60)
    assert numbers.truncated_tokens > 0


def test_repetitions_are_counted_even_if_nobody_drops_them(tmp_path: Path) -> None:
    rows = [{"text": "one two"}, {"text": "one two"}, {"text": "One two!"}, {"text": "three"}]
    source = written(tmp_path / "r.jsonl", *rows)
    numbers = reported(DataSpec(source=source)).statistics
    assert numbers is not None
    assert (numbers.samples, numbers.duplicates, numbers.near_duplicates) == (4, 1, 1)
    dropped = reported(DataSpec(source=source, dedup="near"))
    assert dropped.statistics is not None
    assert (dropped.statistics.samples, dropped.statistics.duplicates) == (2, 0)
    assert dropped.dropped == {"duplicate": 1, "near_duplicate": 1}


def test_reasoning_is_measured_where_there_is_some(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "<think>abc</think>x"}, {"question": "q", "answer": "x"}]
    numbers = reported(DataSpec(source=written(tmp_path / "r.jsonl", *rows))).statistics
    assert numbers is not None
    assert (numbers.traced, numbers.traces) == (1, Spread(3, 3.0, 3, 3, 3, 3, 3))


def test_rows_are_shown_in_the_pieces_that_carry_loss_or_do_not(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "y", "rejected": "n"} for n in range(3)]
    source = written(tmp_path / "r.jsonl", *rows)
    pairs = reported(DataSpec(source=source, method="dpo"), samples=2).shown
    assert [(row.line, row.what) for row in pairs] == [(1, "chosen"), (1, "rejected"), (2, "chosen"), (2, "rejected")]
    assert pairs[1].pieces == (("user: q0<end>assistant: ", False), ("n<end>", True))
    assert (pairs[1].tokens, pairs[1].trained_tokens) == (len("user: q0$assistant: n$"), 2)
    labelled = reported(DataSpec(source=source, method="kto"), samples=2)
    assert [row.what for row in labelled.shown] == ["good", "bad"]
    assert labelled.statistics is not None
    assert (labelled.statistics.good, labelled.statistics.bad) == (3, 3)


class Spacing(BytesTokenizer):
    """Decodes as SentencePiece does: without the space that begins a text."""

    def decode(self, ids: object) -> str:
        return super().decode(ids).removeprefix(" ")  # type: ignore[arg-type]  # handed on as it came


def test_no_space_is_lost_between_two_pieces() -> None:
    ids = list(b"The sea is blue")
    assert pieces_of(Spacing(), ids, [0] * 10 + [1] * 5) == (("The sea is", False), (" blue", True))


class Strict(BytesTokenizer):
    def chat(self, messages: object, tools: object) -> tuple[list[int], list[int]]:
        if "bad" in str(messages):
            raise ValueError("not that word")
        return super().chat(messages, tools)  # type: ignore[arg-type]  # handed on as they came


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": answer} for answer in ("good", "bad", "bad", "fine")]
    found = reported(DataSpec(source=written(tmp_path / "r.jsonl", *rows)), Strict(), max_errors=1)
    assert (found.rows, found.bad) == (2, 2)
    assert found.errors == ("line 2: the model's chat template refuses it: not that word",)


def test_a_data_set_of_which_nothing_stays_is_an_error_as_in_training(tmp_path: Path) -> None:
    data = DataSpec(source=written(tmp_path / "r.jsonl", {"text": "short"}), min_tokens=50)
    with pytest.raises(DatasetError, match=r"no row is left\. Left out: 1 that are shorter than --min-tokens"):
        reported(data)
    with pytest.raises(DatasetError, match="no row is left"):
        made(data, tmp_path / "cache")


def test_secrets_in_shown_rows_are_redacted(tmp_path: Path) -> None:
    row = {"text": "the key is hf_" + "a" * 34}
    assert "aaaa" not in str(reported(DataSpec(source=written(tmp_path / "r.jsonl", row)), samples=1).shown)


def test_a_child_answers_with_statistics_when_it_is_given_a_model(tmp_path: Path) -> None:
    source = written(tmp_path / "r.jsonl", {"text": "abc"})
    job = ValidateJob(data=DataSpec(source=source), model=TOY, backend="toy", samples=1)
    with runner(job, tmp_path) as child:
        done = child.finish()
    assert isinstance(done, Done)
    assert isinstance(done.result, DataReport)
    assert done.result.statistics is not None
    assert (done.result.statistics.tokens, done.result.shown[0].pieces) == (4, (("abc<end>", True),))
