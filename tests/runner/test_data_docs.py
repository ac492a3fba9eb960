"""docs/data.md: its samples are what it says they are, and no format or code of the data side is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backpropagate_protocol.data_formats import KINDS
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.dropped import WORDS
from backpropagate_runner.formats import FORMATS
from backpropagate_runner.validate import scan

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SAMPLES = re.findall(r"```json (\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=[name for name, _ in SAMPLES])
def test_a_sample_has_the_format_above_it(tmp_path: Path, name: str, sample: str) -> None:
    path = tmp_path / "sample.jsonl"
    path.write_text(sample, encoding="utf-8")
    found = scan(DataSpec(source=str(path)))
    assert (found.format, found.rows, found.bad) == (name, 1, 0)


def test_every_format_file_kind_and_code_is_on_the_page() -> None:
    assert {name for name, _ in SAMPLES} | {"raw", "preference_text"} == set(FORMATS)
    assert all(f"`{suffix}`" in PAGE for suffix in KINDS)
    for code in ("NOT_FOUND", "PARSE_FAILED", "VALIDATION_FAILED", "FORMAT_UNSUPPORTED", "INVALID"):
        assert f"| `INPUT_DATASET_{code}` |" in PAGE


def test_every_reason_to_leave_a_row_out_is_on_the_page() -> None:
    assert all(f"`{reason}`" in PAGE for reason in WORDS)
