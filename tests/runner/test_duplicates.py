"""Repetitions: the same text is found always, nearly the same words almost always, other words never."""

from __future__ import annotations

from array import array
from pathlib import Path
from random import Random

import msgspec
import pytest

from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.duplicates import MOST_ALIKE, Duplicates, signature, words
from backpropagate_runner.example import Chat, Completion, Example, Labelled, Pair, Text
from backpropagate_runner.turns import Message
from backpropagate_runner.validate import scan
from tests.runner.prepared_rows import made, texts, written

VOCABULARY = [f"word{number}" for number in range(3000)]


def passage(random: Random, length: int = 120) -> list[str]:
    return random.choices(VOCABULARY, k=length)


def changed(passage: list[str], random: Random, places: int) -> list[str]:
    found = list(passage)
    for place in random.sample(range(len(found)), places):
        found[place] = "other"
    return found


def similarity(one: list[str], other: list[str]) -> float:
    """Of Jaccard, over runs of three words."""
    runs = [{tuple(side[at : at + 3]) for at in range(len(side) - 2)} for side in (one, other)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_equal_places_of_two_signatures_estimate_how_similar_two_texts_are() -> None:
    random = Random(1)
    for places in (2, 10, 40):
        off = 0.0
        for _ in range(30):
            one = passage(random)
            other = changed(one, random, places)
            equal = sum(map(int.__eq__, signature(one), signature(other))) / 64
            off += (equal - similarity(one, other)) / 30
        assert abs(off) < 0.04


def test_a_small_change_is_near_and_another_text_is_not() -> None:
    random = Random(2)
    found = []
    for _ in range(40):
        near, one = Duplicates("near"), passage(random)
        assert near.seen(Text(" ".join(one))) is None
        assert near.seen(Text(" ".join(passage(random)))) is None
        assert near.seen(Text(" ".join(changed(one, random, 25)))) is None
        found.append(near.seen(Text(" ".join(changed(one, random, 1)))))
    assert found.count("near_duplicate") == 40


def test_short_texts_are_near_only_if_their_words_are_the_same() -> None:
    near = Duplicates("near")
    assert near.seen(Text("Yes.")) is None
    assert near.seen(Text("yes!")) == "near_duplicate"
    assert near.seen(Text("No.")) is None
    assert near.seen(Text("...")) is None


def test_exact_repetitions_are_of_everything_in_the_row() -> None:
    ask: Message = {"role": "user", "content": "a"}
    examples: list[Example] = [
        Chat([ask]),
        Chat([ask], unlearnt=1),
        Text("a"),
        Completion("a", ""),
        Pair(Completion("a", "b"), Completion("a", "c")),
        Pair(Completion("a", "c"), Completion("a", "b")),
        Labelled(Completion("a", "b"), True),
        Labelled(Completion("a", "b"), False),
    ]
    exact = Duplicates("exact")
    assert [exact.seen(example) for example in examples] == [None] * len(examples)
    assert [exact.seen(example) for example in examples] == ["duplicate"] * len(examples)


def test_words_of_a_system_turn_do_not_make_rows_alike() -> None:
    system: Message = {"role": "system", "content": "You are helpful."}
    call: Message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather"}}]}
    assert words(Chat([system, {"role": "user", "content": "Hi there"}, call])) == [["hi", "there"], ["function", "name", "weather"]]  # fmt: skip


@pytest.mark.parametrize("kind", ["kto", "sft", "pairs"])
def test_other_answers_to_one_long_prompt_are_not_near(kind: str) -> None:
    random = Random(4)
    prompt, one, other, third = (" ".join(passage(random, length)) for length in (200, 15, 15, 15))
    rows: dict[str, tuple[Example, Example]] = {
        "kto": (Labelled(Completion(prompt, one), True), Labelled(Completion(prompt, other), True)),
        "sft": (Completion(prompt, one), Completion(prompt, other)),
        "pairs": (
            Pair(Completion(prompt, one), Completion(prompt, other)),
            Pair(Completion(prompt, one), Completion(prompt, third)),
        ),
    }
    near = Duplicates("near")
    assert [near.seen(row) for row in rows[kind]] == [None, None]


def test_one_answer_with_both_verdicts_stays_twice_and_the_same_verdict_goes() -> None:
    near = Duplicates("near")
    rows = [Labelled(Completion("How hot is fire?", answer), good) for answer, good in (("Very.", True), ("Very.", False), ("very", False))]  # fmt: skip
    assert [near.seen(row) for row in rows] == [None, None, "near_duplicate"]


def test_the_same_question_with_an_answer_changed_in_one_word_is_near() -> None:
    random = Random(5)
    found = []
    for _ in range(40):
        near, asked, said = Duplicates("near"), passage(random), passage(random)
        near.seen(Completion(" ".join(asked), " ".join(said)))
        found.append(near.seen(Completion(" ".join(asked), " ".join(changed(said, random, 1)))))
    assert found.count("near_duplicate") >= 39


@pytest.mark.parametrize("own", [60, 3])
def test_rows_of_one_template_are_compared_with_few_others(own: int) -> None:
    """However many there are: from half of them on, a row is compared with no more than before."""
    random = Random(6)
    template, near, counts = " ".join(passage(random)), Duplicates("near"), [0]
    for number in range(400):
        near.seen(Completion(f"{template} {' '.join(passage(random, own))}", f"answer {number} of its own"))
        counts.append(near.comparisons)
    assert counts[400] - counts[200] <= 200 * 10 * MOST_ALIKE
    assert counts[400] - counts[200] <= 1.5 * (counts[200] - counts[0]) + 200


def test_where_no_spaces_part_words_signs_are_compared() -> None:
    near = Duplicates("near")
    text = "水是湿的吗这个问题看起来很简单但是许多人想了很久也没有得到一个大家都同意的回答所以我们今天再来谈一谈它"
    assert near.seen(Text(text)) is None
    assert near.seen(Text(text + "吧")) == "near_duplicate"


def test_the_table_grows_without_losing_a_row() -> None:
    random = Random(3)
    near, kept = Duplicates("near"), [passage(random, 12) for _ in range(150)]
    assert [near.seen(Text(" ".join(one))) for one in kept] == [None] * len(kept)
    assert all(near.seen(Text(" ".join(one).upper())) == "near_duplicate" for one in kept)


ROWS = [{"text": "one two three"}, {"text": "four five six"}, {"text": "one two three"}, {"text": "One, two, three!"}]


def test_the_first_of_several_stays_and_the_others_are_counted(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", *ROWS)
    exact = made(DataSpec(source=source, dedup="exact"), tmp_path / "cache")
    assert texts(exact) == ["one two three$", "four five six$", "One, two, three!$"]
    assert (exact.skipped, exact.dropped) == (1, {"duplicate": 1})
    near = made(DataSpec(source=source, dedup="near"), tmp_path / "cache")
    assert texts(near) == ["one two three$", "four five six$"]
    assert near.dropped == {"duplicate": 1, "near_duplicate": 1}


def test_no_row_is_in_training_and_held_out_at_once(tmp_path: Path) -> None:
    """Every second row is held out: rows 1 and 3. Row 3 repeats row 0, row 4 repeats row 1."""
    rows = [{"text": text} for text in ("a", "b", "c", "a", "b")]
    data = DataSpec(source=written(tmp_path / "rows.jsonl", *rows), dedup="exact", holdout=2)
    train = made(data, tmp_path / "cache")
    held = made(msgspec.structs.replace(data, part="held-out"), tmp_path / "cache")
    assert (texts(train), texts(held)) == (["a$", "c$"], ["b$"])
    assert (train.dropped, held.dropped) == ({"duplicate": 1}, {"duplicate": 1})


def test_a_bad_row_of_the_other_part_ends_nothing(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", {"text": "a"}, {"text": 7}, {"text": "a"})
    found = scan(DataSpec(source=source, dedup="exact", holdout=2))
    assert (found.rows, found.bad, found.left_out) == (2, 0, array("q", [2]))
