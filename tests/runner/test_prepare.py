"""Preparation: rows become tokens once, the same every time, and a loss mask that cannot be right is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backpropagate_backends.base import Tokenizer
from backpropagate_backends.toy_tokenizer import EOS, BytesTokenizer
from backpropagate_protocol.errors import DatasetError, InvalidSettingError
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import DataReady
from backpropagate_protocol.prepared import (
    ROWS,
    TOKENS,
    TRAINED,
    Prepared,
    PreparedManifest,
    PreparedWriter,
    open_prepared,
    read_manifest,
    verify,
)
from backpropagate_protocol.rundir import PARTIAL
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.example import Chat
from backpropagate_runner.prepare import prepare, prepared_key
from backpropagate_runner.validate import scan

ROOT = Path(__file__).parents[2]
ACCEPTED = ROOT / "fixtures" / "datasets" / "accepted"
SHARED = ROOT.parent / "shared" / "data"


class Counting(BytesTokenizer):
    """Tells how many rows it was asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        self.asked += 1
        return super().chat(messages, tools)


class Flagging(BytesTokenizer):
    """A template whose mask is the same for every token."""

    def __init__(self, flag: int) -> None:
        self.flag = flag

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        ids, _ = super().chat(messages, tools)
        return ids, [self.flag] * len(ids)


class Strict(BytesTokenizer):
    """A template that refuses system turns, as some do."""

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        if messages[0]["role"] == "system":
            raise ValueError("System role not supported")
        return super().chat(messages, tools)


class Unusable(BytesTokenizer):
    def check(self) -> None:
        raise InvalidSettingError("no generation markers")


def made(
    data: DataSpec, cache: Path, tokenizer: Tokenizer | None = None, notices: list[str] | None = None
) -> DataReady:
    notice = (notices if notices is not None else []).append
    return prepare(data, tokenizer or BytesTokenizer(), scan(data), cache, lambda done, total, detail: None, notice)


def rows_of(ready: DataReady) -> list[tuple[str, str]]:
    """Each row's text, and the part of it that carries loss; the end of a text is a dollar."""
    prepared = open_prepared(PreparedRef(ready.path, ready.digest))
    found = []
    for index in range(len(prepared)):
        tokens, trained = prepared.row(index)
        text = ["$" if token == EOS else chr(token) for token in tokens]
        found.append(("".join(text), "".join(t for t, flag in zip(text, trained, strict=True) if flag)))
    return found


def written(path: Path, *rows: object) -> DataSpec:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSpec(source=str(path))


def test_only_answers_carry_loss(tmp_path: Path) -> None:
    ready = made(DataSpec(source=str(ACCEPTED / "question_answer.jsonl")), tmp_path)
    assert rows_of(ready) == [
        ("user: What is 3 + 4?$assistant: 7$", "7$"),
        ("user: What follows Monday?$assistant: Tuesday$", "Tuesday$"),
    ]
    assert (ready.rows, ready.skipped, ready.truncated) == (2, 0, 0)
    assert ready.tokens == sum(len(text) for text, _ in rows_of(ready))
    assert ready.trained_tokens == len("7$Tuesday$")


def test_answers_inside_a_prompt_carry_no_loss(tmp_path: Path) -> None:
    ready = made(DataSpec(source=str(ACCEPTED / "prompt_completion_turns.jsonl")), tmp_path)
    assert [trained for _, trained in rows_of(ready)] == ["Ada.$", "36.$"]


def test_texts_and_completions_get_no_template(tmp_path: Path) -> None:
    completions = made(DataSpec(source=str(ACCEPTED / "prompt_completion.jsonl")), tmp_path)
    assert rows_of(completions)[0] == ("The sea is blue.$", " blue.$")
    texts = made(DataSpec(source=str(ACCEPTED / "text.jsonl")), tmp_path)
    assert rows_of(texts)[1] == ("Another one.$", "Another one.$")


def test_train_on_all_makes_every_token_carry_loss(tmp_path: Path) -> None:
    data = DataSpec(source=str(ACCEPTED / "question_answer.jsonl"), train_on="all")
    ready = made(data, tmp_path, Unusable())
    assert ready.trained_tokens == ready.tokens


def test_rows_are_cut_on_the_right_and_those_with_nothing_to_learn_are_left_out(tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", {"question": "ab", "answer": "cdef"}, {"question": "x" * 90, "answer": "y"})
    notices: list[str] = []
    ready = made(DataSpec(source=data.source, max_length=21), tmp_path / "cache", notices=notices)
    assert rows_of(ready) == [("user: ab$assistant: c", "c")]
    assert (ready.rows, ready.skipped, ready.truncated) == (1, 1, 1)
    assert notices == [
        "rows left out: 1 of which nothing could be learnt within --max-length",
        "rows cut at 21 tokens: 1 of 1",
    ]


def test_the_model_s_own_limit_cuts_too(tmp_path: Path) -> None:
    tokenizer = BytesTokenizer()
    tokenizer.max_length = 24
    ready = made(DataSpec(source=str(ACCEPTED / "text.jsonl")), tmp_path, tokenizer)
    assert rows_of(ready)[0][0] == "A plain sentence about n"


def test_bad_rows_that_are_skipped_are_counted(tmp_path: Path) -> None:
    source = ROOT / "fixtures" / "datasets" / "defects" / "broken_line.jsonl"
    ready = made(DataSpec(source=str(source), on_bad_row="skip"), tmp_path)
    assert (ready.rows, ready.skipped) == (2, 1)


@pytest.mark.parametrize(("flag", "text"), [(0, "no token would carry loss"), (1, "every token of the conversations")])
def test_a_mask_of_nothing_or_everything_is_refused_and_leaves_nothing(tmp_path: Path, flag: int, text: str) -> None:
    with pytest.raises(DatasetError, match=text) as caught:
        made(DataSpec(source=str(ACCEPTED / "sharegpt.jsonl")), tmp_path, Flagging(flag))
    assert caught.value.code == "INPUT_DATASET_INVALID"
    assert list(tmp_path.iterdir()) == []


def test_the_template_is_checked_before_any_chat_row_and_not_for_plain_text(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match="no generation markers"):
        made(DataSpec(source=str(ACCEPTED / "sharegpt.jsonl")), tmp_path, Unusable())
    assert made(DataSpec(source=str(ACCEPTED / "text.jsonl")), tmp_path, Unusable()).rows == 2


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path: Path) -> None:
    data = DataSpec(source=str(ACCEPTED / "sharegpt.jsonl"))
    with pytest.raises(DatasetError) as caught:
        made(data, tmp_path, Strict())
    assert caught.value.code == "INPUT_DATASET_VALIDATION_FAILED"
    assert "line 1: the model's chat template refuses it: System role not supported" in caught.value.message
    ready = made(DataSpec(source=data.source, on_bad_row="skip"), tmp_path, Strict())
    assert (ready.rows, ready.skipped) == (1, 1)


class Calling(BytesTokenizer):
    """A template that shows tool calls."""

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        shown = [{**turn, "content": f"{turn['content']}{turn.get('tool_calls', '')}"} for turn in messages]
        return super().chat(shown, tools)


def test_a_template_that_leaves_tools_out_is_told_of(tmp_path: Path) -> None:
    data = DataSpec(source=str(ACCEPTED / "messages.jsonl"))
    silent: list[str] = []
    made(data, tmp_path / "calls", Calling(), silent)
    told: list[str] = []
    made(data, tmp_path / "bytes", BytesTokenizer(), told)
    assert silent == []
    assert told == ["the model's chat template shows neither tools nor tool calls: nothing of them is learnt"]


def test_the_same_rows_are_prepared_once(tmp_path: Path) -> None:
    data, tokenizer = DataSpec(source=str(ACCEPTED / "sharegpt.jsonl")), Counting()
    first = made(data, tmp_path, tokenizer)
    assert made(data, tmp_path, tokenizer) == first
    assert tokenizer.asked == 2


@pytest.mark.skipif(sys.platform == "win32", reason="there, access is inherited from the folder")
def test_prepared_data_are_their_owners_own(tmp_path: Path) -> None:
    ready = made(written(tmp_path / "rows.jsonl", {"text": "a secret"}), tmp_path / "output" / "cache")
    assert Path(ready.path).parent.stat().st_mode & 0o077 == 0


def test_a_copy_of_the_file_elsewhere_is_the_same_data(tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((ACCEPTED / "sharegpt.jsonl").read_bytes())
    first = made(DataSpec(source=str(ACCEPTED / "sharegpt.jsonl")), tmp_path)
    assert made(DataSpec(source=str(copy)), tmp_path) == first


def test_whatever_decides_the_tokens_decides_the_key() -> None:
    tokenizer, other = BytesTokenizer(), BytesTokenizer()
    other.digest = "another template"
    short = BytesTokenizer()
    short.max_length = 100
    data = DataSpec(source=str(ACCEPTED / "sharegpt.jsonl"))
    found = scan(data)
    keys = [
        prepared_key(data, tokenizer, found),
        prepared_key(data, other, found),
        prepared_key(data, short, found),
        prepared_key(DataSpec(source=data.source, max_length=99), tokenizer, found),
        prepared_key(DataSpec(source=data.source, samples=1), tokenizer, found),
        prepared_key(DataSpec(source=data.source, train_on="all"), tokenizer, found),
        prepared_key(DataSpec(source=data.source, on_bad_row="skip"), tokenizer, found),
        prepared_key(data, tokenizer, replace(found, source_digest="x")),
        prepared_key(data, tokenizer, replace(found, format="messages")),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", [TOKENS, TRAINED, ROWS])
def test_a_damaged_cache_is_made_again(tmp_path: Path, name: str) -> None:
    data = DataSpec(source=str(ACCEPTED / "sharegpt.jsonl"))
    first = made(data, tmp_path)
    path = Path(first.path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other content"):
        verify(Path(first.path))
    assert made(data, tmp_path) == first
    assert verify(Path(first.path)).digest == first.digest


def test_a_file_that_changes_between_the_passes_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path / "rows.jsonl", {"text": "one"})
    found = scan(data)
    written(tmp_path / "rows.jsonl", {"text": "two"})
    with pytest.raises(DatasetError, match="was changed while it was read"):
        prepare(data, BytesTokenizer(), found, tmp_path / "cache", lambda done, total, detail: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_progress_counts_rows(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    data = DataSpec(source=str(ACCEPTED / "messages.jsonl"))
    prepare(data, BytesTokenizer(), scan(data), tmp_path, lambda done, total, detail: told.append((done, total)))
    assert told[0] == (0, 3)
    assert all(total == 3 for _, total in told)


def filled(writer: PreparedWriter) -> PreparedManifest:
    writer.add([1, 2, 3], [0, 1, 1])
    writer.add([4], [1])
    return writer.commit(key="k", skipped=0, truncated=0, format="text", source_digest="s")


def test_what_is_written_is_read_row_by_row(tmp_path: Path) -> None:
    manifest = filled(PreparedWriter(tmp_path / "set"))
    prepared = Prepared(tmp_path / "set")
    assert [tuple(map(list, prepared.row(index))) for index in range(len(prepared))] == [
        ([1, 2, 3], [0, 1, 1]),
        ([4], [1]),
    ]
    assert (tmp_path / "set" / TOKENS).read_bytes() == array("i", [1, 2, 3, 4]).tobytes()
    assert read_manifest(tmp_path / "set") == manifest
    assert (manifest.rows, manifest.tokens, manifest.trained_tokens) == (2, 4, 3)


def test_two_writers_of_the_same_set_both_succeed_and_the_first_stays(tmp_path: Path) -> None:
    one, two = PreparedWriter(tmp_path / "set"), PreparedWriter(tmp_path / "set")
    first = filled(one)
    reader = Prepared(tmp_path / "set")
    assert filled(two) == first
    assert list(reader.row(1)[0]) == [4]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_processes_that_prepare_the_same_rows_at_once_all_get_them(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from backpropagate_backends.toy_tokenizer import BytesTokenizer\n"
        "from backpropagate_protocol.spec import DataSpec; from backpropagate_runner.prepare import prepare\n"
        "from backpropagate_runner.validate import scan\n"
        "data = DataSpec(source=sys.argv[1]); found = scan(data); print('ready', flush=True); sys.stdin.readline()\n"
        "print(prepare(data, BytesTokenizer(), found, Path(sys.argv[2]), lambda *_: None).digest)"
    )
    command = [sys.executable, "-c", code, str(ACCEPTED / "sharegpt.jsonl"), str(tmp_path)]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(set(answers)) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_dead_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    dead, living = tmp_path / f"set.dead{PARTIAL}", tmp_path / f"set.living{PARTIAL}"
    for folder in (dead, living):
        folder.mkdir()
        (folder / TOKENS).write_bytes(b"")
    for path in (dead / TOKENS, dead):
        os.utime(path, (1e9, 1e9))
    PreparedWriter(tmp_path / "set").abandon()
    assert [path.name for path in tmp_path.iterdir()] == [living.name]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
def test_a_disk_that_takes_no_more_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The system's limit on the size of a file stands for a full disk: the writes themselves fail."""
    code = (
        "import resource, sys; from pathlib import Path; from backpropagate_backends.toy_tokenizer import BytesTokenizer\n"
        "from backpropagate_protocol.spec import DataSpec; from backpropagate_runner.prepare import prepare\n"
        "from backpropagate_runner.validate import scan\n"
        "data = DataSpec(source=sys.argv[1]); found = scan(data)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))\n"
        "try: prepare(data, BytesTokenizer(), found, Path(sys.argv[2]), lambda *_: None)\n"
        "except OSError as error: print('refused', error.errno)"
    )
    source = written(tmp_path / "rows.jsonl", *({"text": "x" * 1000} for _ in range(400))).source
    for limit in (100, 400_000, 1_000_000):
        command = [sys.executable, "-c", code, source, str(tmp_path / "cache"), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"refused {errno.EFBIG}\n"
        assert list((tmp_path / "cache").iterdir()) == []


def test_another_set_under_the_name_a_job_gives_is_refused(tmp_path: Path) -> None:
    manifest = filled(PreparedWriter(tmp_path / "set"))
    with pytest.raises(ValueError, match="other data"):
        open_prepared(PreparedRef(str(tmp_path / "set"), "x" + manifest.digest))
    with pytest.raises(ValueError, match="no prepared data"):
        open_prepared(PreparedRef(str(tmp_path / "none"), manifest.digest))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the larger samples are not part of the repository")
@pytest.mark.parametrize("name", ["gsm8k.jsonl", "gpteacher-roleplay.json", "gsm8k-preferences.jsonl"])
def test_real_data_sets_are_prepared_whole(tmp_path: Path, name: str) -> None:
    data = DataSpec(source=str(SHARED / name), max_length=8192)
    ready = made(data, tmp_path)
    assert (ready.rows, ready.skipped, ready.truncated) == (scan(data).rows, 0, 0)
    assert 0.2 < ready.trained_tokens / ready.tokens < 0.9


def test_a_chat_example_is_what_a_tokenizer_takes() -> None:
    example = Chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert BytesTokenizer().chat(example.messages, example.tools)[1].count(1) == 2
