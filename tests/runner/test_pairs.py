"""Rows with two answers, or one with a verdict: the prompt is found, the answers are parted, what fits no method is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_backends.toy_tokenizer import BytesTokenizer
from backpropagate_protocol.errors import DatasetFormatError
from backpropagate_protocol.prepared import Row
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.example import Chat, Completion, Labelled, Pair, Text
from backpropagate_runner.formats import convert, detect
from backpropagate_runner.prompts import Columns
from backpropagate_runner.tokenise import Refused, Tokeniser
from backpropagate_runner.turns import Message, RowError
from backpropagate_runner.validate import scan
from tests.runner.prepared_rows import made, opened, text, written

ASK: Message = {"role": "user", "content": "Is fire hot?"}
YES: Message = {"role": "assistant", "content": "Yes."}
NO: Message = {"role": "assistant", "content": "No."}
MORE: Message = {"role": "user", "content": "Sure?"}


def pair(row: Columns, format: str = "preference") -> Pair:
    found = convert(format, row, "dpo")
    assert isinstance(found, Pair)
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Is fire hot?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": [ASK], "chosen": [YES], "rejected": [NO]},
        {"prompt": "Is fire hot?", "chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"prompt": [ASK], "chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"prompt": [ASK], "chosen": "Yes.", "rejected": [NO]},
        {"chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"question": "Is fire hot?", "chosen": "Yes.", "rejected": "No."},
        {"instruction": "Is fire hot?", "input": "", "chosen": "Yes.", "rejected": "No."},
        {"input": "Is fire hot?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Is fire hot?", "chosen": [ASK, YES], "rejected": [ASK, NO], "messages": [ASK, YES]},
        {
            "conversations": [ASK],
            "chosen": {"from": "gpt", "value": "Yes."},
            "rejected": {"from": "gpt", "value": "No."},
        },
    ],
    ids=[
        "texts",
        "turns",
        "whole after text",
        "whole after turns",
        "mixed",
        "no prompt",
        "question",
        "instruction",
        "input",
        "beside messages",
        "one turn after conversations",
    ],
)
def test_every_way_to_write_a_pair_is_the_same_pair(row: Columns) -> None:
    assert detect(row, "orpo") == "preference"
    assert pair(row) == Pair(Chat([ASK, YES]), Chat([ASK, NO]))


def test_an_instruction_and_its_input_are_one_prompt_under_the_system_column() -> None:
    row: Columns = {
        "system": "Be brief.",
        "instruction": "Is it hot?",
        "input": "Fire",
        "chosen": "Yes.",
        "rejected": "No.",
    }
    system: Message = {"role": "system", "content": "Be brief."}
    asked: Message = {"role": "user", "content": "Is it hot?\n\nFire"}
    assert pair(row) == Pair(Chat([system, asked, YES]), Chat([system, asked, NO]))
    assert convert("preference", row) == Chat([system, asked, YES])


def test_a_prompt_that_both_answers_repeat_is_not_learnt() -> None:
    row: Columns = {"prompt": "Hi. ", "chosen": "Hi. Yes.", "rejected": "Hi. No."}
    assert pair(row, "preference_text") == Pair(Completion("Hi. ", "Yes."), Completion("Hi. ", "No."))
    assert convert("preference_text", row) == Completion("Hi. ", "Yes.")
    assert pair(row).chosen == convert("preference", row) == Chat([{"role": "user", "content": "Hi. "}, YES])


@pytest.mark.parametrize("format", ["preference", "preference_text"])
@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_texts_whose_prompt_is_nowhere_are_bad_rows_and_not_trained_without_it(format: str, method: str) -> None:
    with pytest.raises(RowError, match="share no beginning"):
        convert(format, {"query": "Is fire hot?", "chosen": "Yes.", "rejected": "No."}, method)
    with pytest.raises(RowError, match="has a system column"):
        convert(format, {"system": "Be brief.", "chosen": "It is hot.", "rejected": "It is cold."}, method)


@pytest.mark.parametrize("format", ["preference", "preference_text"])
@pytest.mark.parametrize(
    "rejected", ["No idea.", "All of it that is said.", "", "All of it"], ids=["other", "shared", "empty", "shorter"]
)
def test_supervised_tuning_learns_all_of_a_chosen_text_whatever_was_rejected(format: str, rejected: str) -> None:
    row: Columns = {"chosen": "All of it.", "rejected": rejected, "source": "forum", "score": 3}
    assert convert(format, row) == Text("All of it.")


def test_turns_that_both_share_belong_to_the_prompt() -> None:
    found = pair({"chosen": [ASK, YES, MORE, YES], "rejected": [ASK, YES, MORE, NO]})
    assert isinstance(found.chosen, Chat)
    assert (found.chosen.unlearnt, found.rejected) == (1, Chat([ASK, YES, MORE, NO], unlearnt=1))


def test_a_system_column_and_tools_are_in_both_answers() -> None:
    row: Columns = {"system": "Be brief.", "prompt": "Is fire hot?", "chosen": "Yes.", "rejected": "No.", "tools": [{}]}
    found = pair(row)
    for side in (found.chosen, found.rejected):
        assert isinstance(side, Chat)
        assert (side.messages[0], side.tools) == ({"role": "system", "content": "Be brief."}, [{}])


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (
            "\n\nHuman: Hi\n\nAssistant: I think so",
            "\n\nHuman: Hi\n\nAssistant: I do not",
            "\n\nHuman: Hi\n\nAssistant:",
        ),
        ("The sky is blue", "The sky is black", "The sky is"),
        ("The sky is", "The sky is black", "The sky"),
        ("水是湿的吗？是的", "水是湿的吗？不是", "水是湿的吗？"),
    ],
    ids=["dialogue", "words", "one begins the other", "no spaces"],
)
def test_texts_are_parted_before_the_word_in_which_they_differ(chosen: str, rejected: str, prompt: str) -> None:
    found = pair({"chosen": chosen, "rejected": rejected})
    assert found == Pair(
        Completion(prompt, chosen.removeprefix(prompt)), Completion(prompt, rejected.removeprefix(prompt))
    )


def test_the_text_format_joins_prompt_and_answers_as_they_are() -> None:
    found = pair({"prompt": "The sea is", "chosen": " blue.", "rejected": " red."}, "preference_text")
    assert found == Pair(Completion("The sea is", " blue."), Completion("The sea is", " red."))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "chosen": "y", "rejected": None}, "rejected is missing"),
        ({"prompt": "x", "chosen": "y", "rejected": " "}, "rejected is empty"),
        ({"chosen": [ASK, YES], "rejected": [MORE, NO]}, "differ in turn 1 already"),
        ({"chosen": [ASK, YES, MORE, NO], "rejected": [ASK, YES]}, "the beginning of the other"),
        ({"chosen": [YES], "rejected": [NO]}, "there is no prompt"),
        ({"chosen": "text", "rejected": [ASK, NO]}, "chosen is text that is not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_pair_has_a_reason(row: Columns, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        convert("preference", row, "dpo")


@pytest.mark.parametrize(("label", "good"), [(True, True), (0, False), ("TRUE", True), ("0", False), (1.0, True)])
def test_a_label_is_a_verdict(label: object, good: bool) -> None:
    row: Columns = {"prompt": [ASK], "completion": [YES], "label": label}
    assert detect(row, "kto") == "labelled"
    assert convert("labelled", row, "kto") == Labelled(Chat([ASK, YES]), good)


def test_a_label_of_another_kind_is_a_bad_row_for_kto_and_a_column_like_any_for_supervised_tuning() -> None:
    row: Columns = {"prompt": "a", "completion": " b", "label": "sports"}
    with pytest.raises(RowError, match="label is 'sports'; it says true of a good answer"):
        convert("labelled", row, "kto")
    assert detect(row) == "prompt_completion"
    assert detect({**row, "label": False}) == "labelled"


PAIR = {"prompt": "Is fire hot?", "chosen": "Yes.", "rejected": "No."}


def test_pairs_are_prepared_with_the_same_prompt_before_both_answers(tmp_path: Path) -> None:
    data = DataSpec(source=written(tmp_path / "p.jsonl", PAIR, {**PAIR, "rejected": "Never."}), method="simpo")
    ready = made(data, tmp_path / "cache")
    prepared = opened(ready)
    assert (prepared.kind, len(prepared), ready.rows, ready.format) == ("pairs", 2, 2, "preference")
    assert [text(side) for side in prepared.pair(1)] == [
        ("user: Is fire hot?$assistant: Yes.$", "Yes.$"),
        ("user: Is fire hot?$assistant: Never.$", "Never.$"),
    ]


def test_methods_that_learn_from_pairs_share_one_prepared_set_and_others_do_not(tmp_path: Path) -> None:
    source = written(tmp_path / "p.jsonl", PAIR)
    folders = {method: made(DataSpec(source=source, method=method), tmp_path / "cache").path for method in ("orpo", "dpo", "kto", "sft")}  # fmt: skip
    assert folders["orpo"] == folders["dpo"]
    assert len(set(folders.values())) == 3


def test_a_pair_gives_kto_a_good_and_a_bad_sample(tmp_path: Path) -> None:
    prepared = opened(made(DataSpec(source=written(tmp_path / "p.jsonl", PAIR), method="kto"), tmp_path / "cache"))
    found = [(text(prepared.row(index))[1], prepared.label(index)) for index in range(len(prepared))]
    assert found == [("Yes.$", True), ("No.$", False)]


def test_supervised_tuning_learns_only_the_good_ones_of_labelled_answers_and_counts_the_others(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": " b", "label": label} for label in (True, False)]
    source, notices = written(tmp_path / "l.jsonl", *rows), list[str]()
    assert made(DataSpec(source=source), tmp_path / "cache", notices).dropped == {"bad_answer": 1}
    assert notices == ["rows left out: 1 whose answer is labelled as a bad one"]
    assert made(DataSpec(source=source, method="kto"), tmp_path / "cache").rows == 2


def test_labels_of_one_kind_only_are_told_of(tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": " b", "label": True}
    notices: list[str] = []
    made(DataSpec(source=written(tmp_path / "l.jsonl", row), method="kto"), tmp_path / "cache", notices)
    assert notices == ["l.jsonl: every answer is labelled as a good one; kto learns best from both kinds"]


def test_equal_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "rejected": "Yes."}, {"chosen": "same text", "rejected": "same text"}]
    found = scan(DataSpec(source=written(tmp_path / "p.jsonl", *rows), method="orpo"))
    assert (found.rows, found.bad, found.taken, found.dropped) == (3, 0, 1, {"equal_answers": 2})


@pytest.mark.parametrize("format", ["auto", "question_answer"])
def test_a_preference_method_on_other_rows_is_told_with_a_row_as_it_should_be(tmp_path: Path, format: str) -> None:
    source = written(tmp_path / "q.jsonl", {"question": "a", "answer": "b"})
    with pytest.raises(DatasetFormatError) as caught:
        scan(DataSpec(source=source, method="orpo", format=format, on_bad_row="skip"))
    assert caught.value.message.splitlines() == [
        "q.jsonl holds rows of the format question_answer, and the method orpo takes pairs of a chosen and a rejected "
        "answer, such as",
        '  {"prompt": "Is water wet?", "chosen": "Yes.", "rejected": "No idea."}',
    ]
    with pytest.raises(DatasetFormatError, match='"label": true'):
        scan(DataSpec(source=source, method="kto"))


def test_a_prompt_alone_fills_the_length_and_the_pair_is_left_out(tmp_path: Path) -> None:
    data = DataSpec(
        source=written(tmp_path / "p.jsonl", PAIR, {**PAIR, "prompt": "x" * 90}), method="dpo", max_length=50
    )
    ready = made(data, tmp_path / "cache")
    assert (ready.rows, ready.dropped) == (1, {"unlearnable": 1})


@pytest.mark.parametrize(("chosen", "rejected"), [("y", "n" * 60), ("y" * 60, "n")])
def test_a_pair_of_which_one_answer_begins_beyond_the_length_is_left_out(chosen: str, rejected: str) -> None:
    tokeniser = Tokeniser(DataSpec(source="p", method="dpo", max_length=50), Long(), lambda notice: None)
    tokeniser.take(Pair(Completion("", chosen), Completion("", rejected)), Nowhere())
    assert tokeniser.dropped == {"unlearnable": 1}


def test_a_template_that_writes_another_prompt_before_the_rejected_answer_is_refused() -> None:
    tokeniser = Tokeniser(DataSpec(source="p", method="dpo"), Fickle(), lambda notice: None)
    with pytest.raises(Refused, match="in another way before the rejected answer"):
        tokeniser.take(Pair(Completion("q", "y"), Completion("q", "n")), Nowhere())


class Long(BytesTokenizer):
    """An answer of 60 signs has as many before it that are not learnt."""

    def completion(self, prompt: str, completion: str) -> Row:
        return super().completion("." * (60 if len(completion) == 60 else 0), completion)


class Fickle(BytesTokenizer):
    """The prompt hangs on the answer."""

    def completion(self, prompt: str, completion: str) -> Row:
        return super().completion(completion + prompt, completion)


class Nowhere:
    """No sample may come here."""

    def add(self, ids: list[int], trained: list[int]) -> None:
        raise AssertionError

    def add_pair(self, chosen: Row, rejected: Row) -> None:
        raise AssertionError

    def add_labelled(self, ids: list[int], trained: list[int], label: bool) -> None:
        raise AssertionError
