"""The held-out part under every wish: the same bounds, the same kind of samples, and never a row of the other part."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.spec import DataSpec
from tests.runner.prepared_rows import made, opened, text, written

ROWS = [
    {"prompt": f"q{number}", "chosen": "<think>abcd</think>" + "y" * number, "rejected": "n" * (number + 1)}
    for number in range(12)
]
WISHES: list[dict[str, object]] = [
    {"method": "orpo"},
    {"method": "kto"},
    {"dedup": "near"},
    {"min_tokens": 40, "max_tokens": 44},
    {"reasoning_trace": True, "trace_tokens": (4, 4)},
    {"order": "curriculum"},
]


def prompts(data: DataSpec, cache: Path) -> set[str]:
    """What was asked in the rows of a prepared set."""
    prepared = opened(made(data, cache))
    rows = [prepared.pair(n)[0] if prepared.kind == "pairs" else prepared.row(n) for n in range(len(prepared))]
    return {text(row)[0].partition("$")[0] for row in rows}


@pytest.mark.parametrize("wishes", WISHES, ids=lambda wishes: ", ".join(wishes))
def test_the_parts_have_no_row_in_common_and_nothing_is_lost(tmp_path: Path, wishes: dict[str, object]) -> None:
    source = written(tmp_path / "r.jsonl", *ROWS)
    whole = DataSpec(source=source, **wishes)  # type: ignore[arg-type]  # the fields are of several types
    train = msgspec.structs.replace(whole, holdout=3)
    held = msgspec.structs.replace(train, part="held-out")
    parts = [prompts(data, tmp_path / "cache") for data in (train, held)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == prompts(whole, tmp_path / "cache")
    assert parts[1] <= {f"user: q{number}" for number in (2, 5, 8, 11)}
