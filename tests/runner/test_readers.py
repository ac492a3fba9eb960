"""Readers: every kind of file gives the same rows, with their line numbers, and no bytes can break one."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backpropagate_protocol.data_formats import KINDS
from backpropagate_protocol.errors import DatasetError, DatasetNotFoundError, DatasetParseError
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.readers import BadRow, RawRow, open_source, read
from backpropagate_runner.sources import is_hub_id, needs_frameworks

ROOT = Path(__file__).parents[2]
ACCEPTED = ROOT / "fixtures" / "datasets" / "accepted"


def rows_of(path: Path) -> list[RawRow | BadRow]:
    with open_source(DataSpec(source=str(path))) as source:
        return list(read(source))


def good(path: Path) -> list[tuple[int, dict[str, object]]]:
    rows = rows_of(path)
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [(row.line, row.value) for row in rows if isinstance(row, RawRow)]


def test_lines_are_counted_through_a_byte_order_mark_blank_lines_and_a_missing_last_line_end() -> None:
    assert [line for line, _ in good(ACCEPTED / "bom.jsonl")] == [1, 3]
    assert good(ACCEPTED / "bom.jsonl")[0][1] == {"text": "After a byte order mark."}


def test_a_row_of_an_array_has_the_line_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\n[\n  {"a": 1,\n   "b": "x"},\n\n  {"a": 2}, {"a": 3}\n]\n')
    assert good(path) == [(3, {"a": 1, "b": "x"}), (6, {"a": 2}), (6, {"a": 3})]


def test_a_row_longer_than_what_is_read_at_once_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    values = [{"text": "ä\n" * 400_000}, {"text": "short"}]
    path.write_text(json.dumps(values, ensure_ascii=False, indent=1), encoding="utf-8")
    assert [value for _, value in good(path)] == values


def test_rows_of_an_array_read_in_pieces_are_the_rows_that_json_reads(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    values = [{"n": n, "text": "é" * (n % 700), "x": [n, {"y": None}]} for n in range(3000)]
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert [value for _, value in good(path)] == values


def test_objects_one_after_the_other_in_a_json_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{\n "a": 1\n}\n{"a": 2}{"a": 3}')
    assert good(path) == [(1, {"a": 1}), (4, {"a": 2}), (4, {"a": 3})]


def test_a_field_of_csv_may_hold_line_ends_and_the_next_row_keeps_its_line() -> None:
    assert good(ACCEPTED / "alpaca.csv") == [
        (2, {"instruction": "Repeat, please.", "input": "two\r\nlines", "output": "two\r\nlines"}),
        (5, {"instruction": "Name a colour.", "input": "", "output": "Blue."}),
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_the_first_line_says_what_separates_the_fields(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'question{mark}answer\nAdd 1 and 2?{mark}"3{mark} or so"\n')
    assert good(path) == [(2, {"question": "Add 1 and 2?", "answer": f"3{mark} or so"})]


def test_blocks_between_blank_lines_are_the_rows_of_a_text() -> None:
    assert good(ACCEPTED / "raw.txt") == [
        (1, {"text": "The first paragraph\nhas two lines."}),
        (6, {"text": "The second – with a dash."}),
    ]
    assert [value["text"] for _, value in good(ACCEPTED / "raw.md")] == ["# A title", "Some text under it."]


def test_the_same_rows_come_out_of_every_kind_of_file() -> None:
    expected = [value for _, value in good(ACCEPTED / "question_answer.jsonl")]
    assert [value for _, value in good(ACCEPTED / "question_answer.parquet")] == expected
    csv_rows = [
        {"question": v["question"], "answer": v["answer"]} for _, v in good(ACCEPTED / "question_answer.csv.gz")
    ]
    assert csv_rows == expected


def test_gzip_is_known_by_its_bytes_not_its_name(tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed.jsonl", tmp_path / "plain.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"a": 1}\n'))
    plain.write_bytes(b'{"a": 1}\n')
    assert good(packed) == good(plain) == [(1, {"a": 1})]


@pytest.mark.parametrize("read_first", [0, 1, None])
def test_the_digest_is_of_the_whole_file_however_much_was_read(tmp_path: Path, read_first: int | None) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 300_000)
    with open_source(DataSpec(source=str(path))) as source:
        for seen, _ in enumerate(read(source)):
            if read_first is not None and seen >= read_first:
                break
        assert source.digest(lambda: None) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert source.done == source.size


def test_a_line_over_the_limit_is_a_bad_row_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"a": 1}\n{"a": "')
        for _ in range(65):
            file.write(b"x" * 1024 * 1024)
        file.write(b'"}\n{"a": 2}\n')
    rows = rows_of(path)
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason == "the line is longer than 64 MiB"
    assert rows[2] == RawRow(3, {"a": 2})


def test_what_nests_too_deeply_is_a_bad_row_or_a_coded_error(tmp_path: Path) -> None:
    lines, array = tmp_path / "deep.jsonl", tmp_path / "deep.json"
    deep = b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    lines.write_bytes(deep + b'\n{"a": 1}\n')
    array.write_bytes(b"[" + deep + b"]")
    assert rows_of(lines) == [BadRow(1, "is nested too deeply"), RawRow(2, {"a": 1})]
    with pytest.raises(DatasetParseError, match="nested too deeply"):
        rows_of(array)


def test_a_number_of_thousands_of_digits_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": ' + b"9" * 5000 + b"}\n")
    assert isinstance(rows_of(path)[0], BadRow)


def test_a_bad_header_is_an_error_and_no_other_row_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"fran\xe7ais,anglais\nquestion,answer\n")
    with pytest.raises(DatasetParseError, match="line 1: the header is not UTF-8"):
        rows_of(path)


def test_missing_files_are_not_found_whatever_their_name(tmp_path: Path) -> None:
    for name in ("no.jsonl", "no.parquet", "no.xyz", "no", "no/where.csv"):
        with pytest.raises(DatasetNotFoundError, match="there is no file"):
            rows_of(tmp_path / name)


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rows.jsonl"
    folder.mkdir()
    with pytest.raises(DatasetError, match="is a folder"):
        rows_of(folder)
    with pytest.raises(DatasetError, match="not a regular file"):
        rows_of(Path(os.devnull))


def test_a_name_with_a_nul_is_refused() -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        rows_of(Path("/rows\0.jsonl"))


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others there")
def test_a_file_that_may_not_be_read_is_a_coded_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n')
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(DatasetError, match="Permission denied"):
        rows_of(path)


def test_a_hub_id_is_not_mistaken_for_a_file(tmp_path: Path) -> None:
    assert is_hub_id("owner/name")
    assert is_hub_id("Hugging-Face_1/data.v2")
    for source in (
        "owner/name.jsonl",
        "rows.jsonl",
        "a/b/c",
        "../x",
        str(tmp_path / "x"),
        "fixtures/",
        "owner/x.csv.gz",
    ):
        assert not is_hub_id(source)
    assert needs_frameworks("owner/name")
    assert needs_frameworks("/x/rows.parquet.gz")
    assert not needs_frameworks("/x/rows.jsonl")


@pytest.mark.slow
def test_the_rows_of_a_data_set_that_the_hub_s_library_streams(tmp_path: Path) -> None:
    """A folder takes the hub's place: the library reads either the same way."""
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    code = (
        "import sys; from backpropagate_protocol.spec import DataSpec; from backpropagate_runner.readers import HubSource\n"
        "source = HubSource(DataSpec(source=sys.argv[1], samples=2)); rows = list(source.rows())\n"
        "print([(row.line, row.value) for row in rows], len(source.digest(lambda: None)))"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[(1, {'text': 'one'}), (2, {'text': 'two'})] 64"


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_a_coded_error(tmp_path: Path) -> None:
    code = (
        "from backpropagate_protocol.errors import DatasetError; from backpropagate_protocol.spec import DataSpec\n"
        "from backpropagate_runner.validate import scan\n"
        "try: scan(DataSpec(source='nobody/nothing-of-the-kind'))\n"
        "except DatasetError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.startswith("[INPUT_DATASET_NOT_FOUND]: the hub has no data set nobody/nothing-of-the-kind")
    # Who turned the network off meant it; where nobody answers, it is worth coming again.
    # The library tries six times; its pauses in between are left out.
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", f"import time; time.sleep = lambda seconds: None\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=240)
    assert done.stdout.startswith("[DEP_HUB_UNREACHABLE]: the data set nobody/nothing-of-the-kind"), done.stdout


def test_reading_json_csv_and_text_imports_no_large_package() -> None:
    """In a fresh process, as the runner is one while the frameworks are imported beside it."""
    code = (
        "import sys; from backpropagate_protocol.spec import DataSpec; from backpropagate_runner.validate import scan\n"
        "for name in sys.argv[1:]: scan(DataSpec(source=name))\n"
        "print(sorted({'pyarrow', 'datasets', 'numpy', 'torch', 'transformers', 'orjson'} & set(sys.modules)))"
    )
    names = ("sharegpt.jsonl", "alpaca.json", "alpaca.csv", "raw.txt", "alpaca.jsonl.gz")
    command = [sys.executable, "-c", code, *(str(ACCEPTED / name) for name in names)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_TEXTS = st.lists(_JSONISH, max_size=4).map(json.dumps) | st.lists(_JSONISH, max_size=4).map(
    lambda rows: "\n".join(json.dumps(row) for row in rows)
)
_BYTES = st.binary(max_size=200) | _TEXTS.map(str.encode)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Valid or arbitrary bytes, cut, spliced, and maybe packed."""
    data = draw(_BYTES)
    cut = draw(st.integers(0, len(data)))
    data = data[:cut] + draw(st.binary(max_size=3)) + data[cut : draw(st.integers(cut, len(data)))]
    if draw(st.booleans()):
        packed = gzip.compress(data)
        data = packed[: draw(st.integers(0, len(packed)))]
    return data


@pytest.mark.parametrize("suffix", [suffix for suffix in KINDS if suffix != ".parquet"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=damaged())
def test_any_bytes_give_rows_or_a_coded_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"fuzz{suffix}"
    path.write_bytes(data)
    with contextlib.suppress(DatasetError):
        rows_of(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 700), value=st.binary(min_size=1, max_size=4), end=st.integers(0, 2000))
def test_a_damaged_parquet_file_gives_rows_or_a_coded_error(tmp_path: Path, at: int, value: bytes, end: int) -> None:
    whole = (ACCEPTED / "question_answer.parquet").read_bytes()
    path = tmp_path / "fuzz.parquet"
    path.write_bytes((whole[:at] + value + whole[at + len(value) :])[:end])
    with contextlib.suppress(DatasetError):
        rows_of(path)
