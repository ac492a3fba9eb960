"""What data may be called: one table, and both sides keep to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.wishes.options import BY_KEY, NotAccepted, parse
from backpropagate_protocol import data_formats
from backpropagate_runner import formats, sources


def test_the_runner_reads_what_the_table_names() -> None:
    assert formats.FORMATS == data_formats.FORMATS
    assert all(formats.canonical(name) == format for name, format in data_formats.FORMAT_ALIASES.items())


def test_every_format_can_be_forced_and_every_kind_of_file_is_in_the_help() -> None:
    option = BY_KEY["data.format"]

    assert option.shown_choices == ("auto", *data_formats.FORMATS)
    assert [parse(option, name) for name in ("auto", *data_formats.FORMATS, *data_formats.FORMAT_ALIASES)]
    assert all(suffix in BY_KEY["data.source"].help for suffix in (*data_formats.KINDS, data_formats.PACKED))
    with pytest.raises(NotAccepted):
        parse(option, "yaml")


@pytest.mark.parametrize(
    ("name", "end"),
    [("rows.jsonl", ".jsonl"), ("ROWS.CSV.GZ", ".csv"), ("a.b/rows", ""), ("rows.gz", ""), ("x.tsv", ".tsv")],
)
def test_the_end_of_a_name_says_what_a_file_holds(name: str, end: str) -> None:
    assert data_formats.suffix(name) == end


@pytest.mark.parametrize(
    ("source", "is_one"),
    [("owner/name", True), ("owner/name.v2", True), ("owner/_name", True), ("data/rows.jsonl", False),
     ("data/rows.tsv", False), ("data/rows.gz", False), ("name", False), ("a/b/c", False), ("./rows", False)],
)  # fmt: skip
def test_both_sides_take_the_same_for_a_hub_id(tmp_path: Path, source: str, is_one: bool) -> None:
    assert data_formats.may_be_hub_id(source) == is_one
    if not source.endswith(data_formats.PACKED):
        assert sources.is_hub_id(source) == is_one
