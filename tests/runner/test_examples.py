"""Which rows of a file a DataSpec names: windows that cover it without overlapping, and rows that are held out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_protocol.errors import DatasetError, InvalidSettingError
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.spec import DataSpec, Portion
from backpropagate_runner.example import Text
from backpropagate_runner.examples import Examples, GoodRow
from backpropagate_runner.readers import open_source
from backpropagate_runner.report import report
from backpropagate_runner.validate import scan
from tests.runner.prepared_rows import written

# What may stand between two rows, and what may stand in the place of one.
BLANK, BROKEN, UNFIT = "\n", '{"text": \n', '{"title": "x"}\n'


def good(number: int) -> str:
    return json.dumps({"text": f"row {number}"}) + "\n"


def texts(data: DataSpec) -> list[tuple[int, str]]:
    """Position and text of every good row."""
    with open_source(data) as source:
        found = [row for row in Examples(source, data) if isinstance(row, GoodRow)]
    return [(row.position, row.example.text) for row in found if isinstance(row.example, Text)]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DataSpec]:
    folder = tmp_path_factory.mktemp("rows")

    def made(content: str) -> DataSpec:
        path = folder / "rows.jsonl"
        path.write_text(content)
        return DataSpec(source=str(path), format="text")

    return made


lines = st.lists(st.sampled_from(["good", BLANK, BROKEN, UNFIT]), max_size=40)


@given(lines=lines, size=st.integers(1, 12), holdout=st.sampled_from([0, 2, 3, 7]))
def test_windows_one_after_the_other_cover_the_file_and_no_row_is_in_two(
    file: Callable[[str], DataSpec], lines: list[str], size: int, holdout: int
) -> None:
    data = file("".join(good(number) if line == "good" else line for number, line in enumerate(lines)))
    rows = [line for line in lines if line != BLANK]
    whole = [position for position, line in enumerate(rows) if line == "good"]
    assert [position for position, _ in texts(data)] == whole
    seen = []
    for start in range(0, len(rows) + 1, size):
        for part in ("train", "held-out"):
            seen += texts(msgspec.structs.replace(data, start=start, samples=size, holdout=holdout, part=part))
    assert sorted(seen) == texts(data)


@given(broken=st.sets(st.integers(0, 29)), holdout=st.integers(2, 9), start=st.integers(0, 30))
def test_a_row_is_held_out_by_its_place_in_the_file_whatever_the_others_are(
    file: Callable[[str], DataSpec], broken: set[int], holdout: int, start: int
) -> None:
    data = file("".join(BROKEN if number in broken else BLANK + good(number) for number in range(30)))
    chosen = msgspec.structs.replace(data, holdout=holdout, start=start)
    held = texts(msgspec.structs.replace(chosen, part="held-out"))
    expected = [n for n in range(start, 30) if n % holdout == holdout - 1 and n not in broken]
    assert held == [(n, f"row {n}") for n in expected]
    assert texts(chosen) == [(n, f"row {n}") for n in range(start, 30) if n not in broken and n not in expected]


@pytest.mark.parametrize(("name", "rows"), [("rows.csv", "text\n{}\n"), ("rows.txt", "{}\n\n"), ("rows.json", "[{}]")])
def test_other_kinds_of_files_are_cut_in_the_same_way(tmp_path: Path, name: str, rows: str) -> None:
    values = [f"row {number}" for number in range(9)]
    if name == "rows.json":
        content = json.dumps([{"text": value} for value in values])
    else:
        head, _, tail = rows.partition("{}")
        content = head + "".join(value + (tail if name == "rows.txt" else "\n") for value in values)
    (tmp_path / name).write_text(content)
    data = DataSpec(source=str(tmp_path / name), start=2, samples=5, holdout=3)
    assert texts(data) == [(2 + 1, "row 3"), (4, "row 4"), (6, "row 6")]
    assert texts(msgspec.structs.replace(data, part="held-out")) == [(2, "row 2"), (5, "row 5")]


def test_every_window_has_the_format_of_the_files_first_known_row(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d", "question": "e", "answer": "f"}]
    rows.append({"question": "g", "answer": "h"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert scan(DataSpec(source=str(path), start=1, samples=1)).format == "alpaca"
    with pytest.raises(DatasetError, match="line 3: has the columns question, answer; the format alpaca needs"):
        scan(DataSpec(source=str(path), start=2))


def test_a_report_counts_every_row_of_the_file_good_or_bad(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(good(0) + BLANK + BROKEN + UNFIT + good(3))
    found = report(ValidateJob(data=DataSpec(source=str(path))))
    assert (found.rows, found.bad) == (2, 2)


def test_bad_rows_outside_of_the_window_or_held_out_are_none_of_its_business(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(BROKEN + good(1) + good(2) + BROKEN + good(4) + BROKEN)
    found = scan(DataSpec(source=str(path), start=1, samples=4, holdout=4))
    assert (found.rows, found.bad) == (3, 0)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"start": 4}, "has no rows from row 4 on"),
        ({"samples": 0}, "has no rows"),
        ({"part": "held-out", "holdout": 5}, r"has no rows that are held out \(every 5th is\)"),
        ({"part": "held-out", "holdout": 3, "start": 3}, r"held out \(every 3th is\) from row 3 on"),
    ],
)
def test_a_choice_of_no_rows_is_refused(tmp_path: Path, choice: dict[str, object], words: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(map(good, range(4))))
    with pytest.raises(DatasetError, match=words):
        scan(DataSpec(source=str(path), **choice))  # type: ignore[arg-type]  # the fields are of several types


@pytest.mark.parametrize(
    "choice",
    [
        {"part": "test"},
        {"start": -1},
        {"holdout": 1},
        {"holdout": -2},
        {"replay": (Portion(source="/d", take=-1),)},
    ],
)
def test_a_choice_that_means_nothing_is_refused(tmp_path: Path, choice: dict[str, object]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(good(0))
    with pytest.raises(InvalidSettingError):
        scan(DataSpec(source=str(path), **choice))  # type: ignore[arg-type]  # the fields are of several types


def test_a_file_with_too_few_rows_to_hold_any_out_is_told_to_hold_out_more(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        scan(DataSpec(source=written(tmp_path / "r.jsonl", {"text": "a"}), part="held-out", holdout=5))
    assert "--eval-split" in str(caught.value.suggestion)
