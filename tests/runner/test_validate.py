"""Validation: every accepted sample passes, every defect is a coded error that names the line and the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backpropagate_protocol.errors import BackpropagateError, DatasetError, DatasetFormatError, InvalidSettingError
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.report import report
from backpropagate_runner.validate import needs_frameworks, scan

ROOT = Path(__file__).parents[2]
ACCEPTED = ROOT / "fixtures" / "datasets" / "accepted"
DEFECTS = ROOT / "fixtures" / "datasets" / "defects"
SHARED = ROOT.parent / "shared" / "data"

FORMAT_OF = {
    "alpaca.csv": ("alpaca", 2),
    "alpaca.json": ("alpaca", 2),
    "alpaca.jsonl.gz": ("alpaca", 2),
    "alpaca_history.jsonl": ("alpaca", 1),
    "alpaca_response.json": ("alpaca", 2),
    "array_in_jsonl.jsonl": ("text", 2),
    "bom.jsonl": ("text", 2),
    "chatml.jsonl": ("chatml", 2),
    "messages.jsonl": ("messages", 3),
    "messages.parquet.gz": ("messages", 1),
    "preference.jsonl": ("preference", 1),
    "preference_no_prompt.jsonl": ("preference", 1),
    "preference_turns.jsonl": ("preference", 2),
    "prompt_completion.jsonl": ("prompt_completion", 2),
    "prompt_completion_turns.jsonl": ("prompt_completion", 2),
    "question_answer.csv.gz": ("question_answer", 2),
    "question_answer.jsonl": ("question_answer", 2),
    "question_answer.parquet": ("question_answer", 2),
    "raw.md": ("raw", 2),
    "raw.txt": ("raw", 2),
    "raw.txt.gz": ("raw", 2),
    "sharegpt.jsonl": ("sharegpt", 2),
    "sharegpt_tools.jsonl": ("sharegpt", 1),
    "text.jsonl": ("text", 2),
    "trailing_user.jsonl": ("messages", 1),
}

INVALID, PARSE = "INPUT_DATASET_INVALID", "INPUT_DATASET_PARSE_FAILED"
VALIDATION, UNSUPPORTED = "INPUT_DATASET_VALIDATION_FAILED", "INPUT_DATASET_FORMAT_UNSUPPORTED"
FAULT_OF = {
    "after_array.json": (PARSE, "line 4: something follows the end of the array"),
    "bad_role.jsonl": (VALIDATION, "1 of 2 rows cannot be used\n  line 1: turn 2 has the role 'wizard'"),
    "bad_tools.jsonl": (VALIDATION, "line 1: tools is text that is not JSON"),
    "binary.jsonl": (PARSE, "none of its 2 rows can be used"),
    "blank.jsonl": (INVALID, "blank.jsonl has no rows"),
    "broken_line.jsonl": (PARSE, "1 of 3 rows cannot be used\n  line 2: is not JSON: Unterminated string"),
    "call_not_json.jsonl": (VALIDATION, "line 1: the arguments of a tool call of turn 2"),
    "call_without_name.jsonl": (VALIDATION, "line 1: a tool call of turn 2 has no function name"),
    "empty.jsonl": (INVALID, "empty.jsonl has no rows"),
    "empty.txt": (INVALID, "empty.txt has no rows"),
    "empty_answer.jsonl": (VALIDATION, "line 1: answer is empty"),
    "empty_array.json": (INVALID, "empty_array.json has no rows"),
    "empty_conversation.jsonl": (VALIDATION, "line 1: conversations is empty"),
    "empty_turn.jsonl": (VALIDATION, "line 1: turn 2 (assistant) is empty"),
    "half_surrogate.jsonl": (VALIDATION, "line 1: text holds half a surrogate pair"),
    "header_only.csv": (INVALID, "header_only.csv has no rows"),
    "image.jsonl": (VALIDATION, "line 1: the content of turn 1 has a part that is not text (image_url)"),
    "latin1.csv": (PARSE, "line 3: is not UTF-8"),
    "latin1.json": (PARSE, "line 2: is not UTF-8"),
    "latin1.txt": (PARSE, "line 4: is not UTF-8"),
    "latin1_line.jsonl": (PARSE, "line 2: is not UTF-8 (byte 14 of the line)"),
    "missing_comma.json": (PARSE, "line 3: is not JSON: a comma or ] is missing"),
    "mixed.jsonl": (VALIDATION, "line 2: has the columns instruction, output; the format question_answer needs"),
    "no_assistant.jsonl": (VALIDATION, "line 1: has no assistant turn"),
    "no_rejected.jsonl": (VALIDATION, "line 2: rejected is missing"),
    "no_role.jsonl": (VALIDATION, "line 1: turn 1 has no role"),
    "null_answer.jsonl": (VALIDATION, "line 1: output is null, not text"),
    "number_as_content.jsonl": (VALIDATION, "line 1: the content of turn 2 is a number"),
    "open_array.json": (PARSE, "line 3: the file ends in the middle of the array"),
    "open_quote.csv": (PARSE, "line 3: is not CSV"),
    "ragged.csv": (PARSE, "line 3: has 1 fields, and the header has 2"),
    "row_is_list.jsonl": (PARSE, "line 2: a row must be an object with named fields, not a list"),
    "row_is_number.json": (PARSE, "line 2: a row must be an object with named fields, not a number"),
    "rows.xml": (UNSUPPORTED, "rows.xml does not end like a data file"),
    "torn.jsonl.gz": (PARSE, "is not a whole gzip file"),
    "torn.parquet": (PARSE, "is not a parquet file that can be read"),
    "torn_array.json": (PARSE, "line 3: is not JSON"),
    "turns_not_a_list.jsonl": (VALIDATION, "line 1: messages is an object, not a list"),
    "unknown_columns.jsonl": (UNSUPPORTED, "has the columns title, body; accepted: conversations; messages;"),
    "utf16.jsonl": (PARSE, "is UTF-16 or UTF-32 text"),
}
# Where reading cannot go on after the fault, skipping is no way out either.
SKIPPABLE = {
    *("bad_role.jsonl", "broken_line.jsonl", "latin1.csv", "latin1.txt", "latin1_line.jsonl", "mixed.jsonl"),
    *("no_rejected.jsonl", "open_quote.csv", "ragged.csv", "row_is_list.jsonl", "row_is_number.json"),
}


def data(path: Path, **wishes: str | int) -> DataSpec:
    return DataSpec(source=str(path), **wishes)  # type: ignore[arg-type]  # the fields are of several types


def test_every_sample_in_the_folders_is_exercised() -> None:
    assert {path.name for path in ACCEPTED.iterdir()} == set(FORMAT_OF)
    assert {path.name for path in DEFECTS.iterdir()} == set(FAULT_OF)


@pytest.mark.parametrize("name", FORMAT_OF)
def test_an_accepted_sample_is_recognised_and_has_no_bad_row(name: str) -> None:
    found = scan(data(ACCEPTED / name))
    assert (found.format, found.rows, found.bad) == (*FORMAT_OF[name], 0)


@pytest.mark.parametrize("name", FAULT_OF)
def test_a_defect_is_a_coded_error_with_line_and_reason(name: str) -> None:
    code, text = FAULT_OF[name]
    with pytest.raises(DatasetError) as caught:
        scan(data(DEFECTS / name))
    assert caught.value.code == code
    assert text in caught.value.message
    assert name in caught.value.message


@pytest.mark.parametrize("name", FAULT_OF)
def test_bad_rows_can_be_skipped_where_the_rest_can_be_read(name: str) -> None:
    if name in SKIPPABLE:
        found = scan(data(DEFECTS / name, on_bad_row="skip"))
        assert found.bad == 1
        assert found.rows >= 1
        assert any("bad rows left out: 1" in notice for notice in found.notices)
    else:
        with pytest.raises(DatasetError) as caught:
            scan(data(DEFECTS / name, on_bad_row="skip"))
        assert caught.value.code == FAULT_OF[name][0]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the larger samples are not part of the repository")
@pytest.mark.parametrize(
    ("name", "format", "rows"),
    [
        ("gsm8k.jsonl", "question_answer", 1500),
        ("gpteacher-roleplay.json", "alpaca", 600),
        ("gsm8k-preferences.jsonl", "preference", 800),
    ],
)
def test_real_data_sets_load_as_they_are(name: str, format: str, rows: int) -> None:
    found = scan(data(SHARED / name))
    assert (found.format, found.rows, found.bad) == (format, rows, 0)


def test_the_first_ten_bad_rows_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "good"}\n' + '{"text": 1}\n' * 12)
    with pytest.raises(DatasetError) as caught:
        scan(data(path))
    lines = caught.value.message.splitlines()
    assert lines[0] == "rows.jsonl: 12 of 13 rows cannot be used"
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [f"line {n}" for n in range(2, 12)]
    assert lines[-1].strip() == "… and 2 more"


def test_rows_of_unknown_columns_before_the_first_known_one_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"comment": "made by hand"}\n{"text": "good"}\n')
    found = scan(data(path, on_bad_row="skip"))
    assert (found.format, found.rows, found.bad) == ("text", 1, 1)
    assert found.errors == ("line 1: has the columns comment, which fit no format",)


def test_a_file_of_unknown_columns_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"title": "x"}\n' * 1000 + '{"text": "never reached"}\n')
    with pytest.raises(DatasetFormatError, match="title"):
        scan(data(path))


def test_samples_are_the_first_rows_and_what_follows_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' * 3 + "broken\n")
    assert scan(data(path, samples=3)).rows == 3
    assert scan(data(path, samples=3)).source_digest == scan(data(path, on_bad_row="skip")).source_digest


def test_a_format_that_was_asked_for_is_not_guessed() -> None:
    talk = ACCEPTED / "chatml.jsonl"
    assert scan(data(talk)).counts["chat"] == 1
    forced = scan(data(talk, format="raw"))
    assert (forced.format, forced.counts["text"]) == ("raw", 2)
    assert scan(data(ACCEPTED / "messages.jsonl", format="openai")).format == "messages"
    with pytest.raises(DatasetError, match="the format alpaca needs"):
        scan(data(talk, format="alpaca"))
    with pytest.raises(InvalidSettingError, match="'xml'"):
        scan(data(talk, format="xml"))


def test_preferences_say_that_the_rejected_answers_are_left_out() -> None:
    assert "only prompt and chosen" in scan(data(ACCEPTED / "preference.jsonl")).notices[0]


def test_progress_counts_bytes_and_ends_with_rows() -> None:
    told: list[tuple[int, int, str]] = []
    path = ACCEPTED / "text.jsonl"
    scan(data(path), lambda done, total, detail: told.append((done, total, detail)))
    assert told[0] == (path.stat().st_size, path.stat().st_size, "text.jsonl")
    assert told[-1] == (2, 2, "2 rows")


def test_a_report_shows_bad_rows_and_raises_nothing_for_them() -> None:
    found = report(ValidateJob(data=data(DEFECTS / "broken_line.jsonl"), max_errors=1))
    assert (found.format, found.rows, found.bad) == ("text", 2, 1)
    assert found.errors[0].startswith("line 2: is not JSON")
    assert report(ValidateJob(data=data(DEFECTS / "binary.jsonl"), max_errors=1)).errors[0].startswith("line 1")
    with pytest.raises(BackpropagateError, match="has no rows"):
        report(ValidateJob(data=data(DEFECTS / "empty.jsonl")))


def test_only_parquet_and_the_hub_wait_for_the_frameworks() -> None:
    assert needs_frameworks(DataSpec(source="owner/name"))
    assert needs_frameworks(data(ACCEPTED / "question_answer.parquet"))
    assert not needs_frameworks(data(ACCEPTED / "alpaca.csv"))


def test_errors_hold_no_more_of_the_data_than_names(tmp_path: Path) -> None:
    """A role or a column can be anything; a message shows at most a glance of it."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "r" * 500, "content": "x"}]}) + "\n")
    with pytest.raises(DatasetError) as caught:
        scan(data(path))
    assert len(caught.value.message) < 400
