"""Earlier rows mixed into new ones: the same ones every time, never a held-out one, each checked like a new row."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backpropagate_backends.toy_tokenizer import EOS, BytesTokenizer
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.jobs import PreparedRef
from backpropagate_protocol.messages import DataReady
from backpropagate_protocol.prepared import open_prepared
from backpropagate_protocol.spec import DataSpec, Portion
from backpropagate_runner.prepare import prepare, prepared_key
from backpropagate_runner.replay import Choice
from backpropagate_runner.validate import needs_frameworks, scan


def written(path: Path, word: str, count: int) -> str:
    path.write_text("".join(json.dumps({"text": f"{word} {number}"}) + "\n" for number in range(count)))
    return str(path)


def made(data: DataSpec, cache: Path) -> DataReady:
    return prepare(data, BytesTokenizer(), scan(data), cache, lambda done, total, detail: None)


def rows_of(ready: DataReady) -> list[str]:
    prepared = open_prepared(PreparedRef(ready.path, ready.digest))
    rows = (prepared.row(index)[0] for index in range(len(prepared)))
    return [bytes(token for token in row if token != EOS).decode() for row in rows]


# --- the choice -------------------------------------------------------------------------------------------------------


@given(take=st.integers(0, 30), offered=st.sets(st.integers(0, 1000), max_size=60), seed=st.integers(0, 9))
def test_as_many_as_wanted_of_what_is_offered_ascending_and_none_twice(take: int, offered: set[int], seed: int) -> None:
    def chosen() -> list[int]:
        choice = Choice(take, seed)
        for position in sorted(offered):
            choice.offer(position)
        return list(choice.positions())

    found = chosen()
    assert found == sorted(set(found))
    assert set(found) <= offered
    assert len(found) == min(take, len(offered))
    assert chosen() == found


def test_what_was_chosen_once_is_chosen_in_every_version() -> None:
    choice = Choice(5, 42)
    for position in range(100):
        choice.offer(position)
    assert list(choice.positions()) == [28, 34, 36, 50, 78]


def test_every_row_has_the_same_chance() -> None:
    counts = [0] * 20
    for seed in range(2000):
        choice = Choice(5, seed)
        for position in range(20):
            choice.offer(position)
        for position in choice.positions():
            counts[position] += 1
    assert sum(counts) == 10_000
    assert all(400 < count < 600 for count in counts)  # 500, five standard deviations


# --- mixed in -----------------------------------------------------------------------------------------------------------


def test_chosen_rows_come_after_the_own_ones(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old.jsonl", "old", 50), written(tmp_path / "new.jsonl", "new", 4)
    data = DataSpec(source=new, replay=(Portion(source=old, start=10, stop=20, take=3, seed=1),))
    rows = rows_of(made(data, tmp_path / "cache"))
    assert rows[:4] == [f"new {number}" for number in range(4)]
    assert len(rows) == 7
    assert set(rows[4:]) <= {f"old {number}" for number in range(10, 20)}
    again = rows_of(made(data, tmp_path / "another cache"))
    assert again == rows
    other = msgspec.structs.replace(data, replay=(msgspec.structs.replace(data.replay[0], seed=2),))
    assert rows_of(made(other, tmp_path / "cache")) != rows


@settings(deadline=None, max_examples=25)
@given(holdout=st.integers(2, 6), start=st.integers(0, 20), size=st.integers(2, 15), take=st.integers(0, 20))
def test_a_held_out_row_is_never_prepared_for_training(holdout: int, start: int, size: int, take: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = written(Path(folder, "rows.jsonl"), "row", 40)
        portions = (
            Portion(source=source, start=0, stop=start, take=take, seed=3),
            Portion(source=source, start=start + size, take=take, seed=4),
        )
        data = DataSpec(source=source, start=start, samples=size, holdout=holdout, replay=portions)
        rows = rows_of(made(data, Path(folder, "cache")))
        held = rows_of(
            made(
                msgspec.structs.replace(data, start=0, samples=None, replay=(), part="held-out"), Path(folder, "cache")
            )
        )
    assert held == [f"row {number}" for number in range(holdout - 1, 40, holdout)]
    assert not set(rows) & set(held)
    assert len(set(rows)) == len(rows)
    own = [number for number in range(start, start + size) if number % holdout != holdout - 1]
    assert rows[: len(own)] == [f"row {number}" for number in own]


def test_a_portion_with_fewer_rows_than_wanted_gives_all_and_says_so(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old.jsonl", "old", 3), written(tmp_path / "new.jsonl", "new", 2)
    data = DataSpec(source=new, replay=(Portion(source=old, take=5), Portion(source=old, start=7, take=1)))
    assert rows_of(made(data, tmp_path / "cache"))[2:] == ["old 0", "old 1", "old 2"]
    assert scan(data).notices == (
        "old.jsonl: 3 earlier rows can be mixed in, of 5 that were wanted",
        "old.jsonl: 0 earlier rows can be mixed in, of 1 that were wanted",
    )


def test_earlier_rows_may_have_another_format_and_are_checked_like_new_ones(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", written(tmp_path / "new.jsonl", "new", 2)
    old.write_text('{"question": "Why?", "answer": "So."}\n{"question": "Why?"}\n')
    data = DataSpec(source=new, replay=(Portion(source=str(old), take=2),))
    with pytest.raises(DatasetError, match=r"old\.jsonl: 1 of 2 rows cannot be used\n  line 2"):
        scan(data)
    skipping = msgspec.structs.replace(data, on_bad_row="skip")
    assert rows_of(made(skipping, tmp_path / "cache"))[2].startswith("user: Why?")
    with pytest.raises(DatasetError, match="there is no file"):
        scan(msgspec.structs.replace(data, replay=(Portion(source=str(tmp_path / "gone.jsonl"), take=2),)))


def test_an_earlier_file_that_changed_makes_other_data(tmp_path: Path) -> None:
    old, new = written(tmp_path / "old.jsonl", "old", 9), written(tmp_path / "new.jsonl", "new", 2)
    data = DataSpec(source=new, replay=(Portion(source=old, take=2),))
    before = made(data, tmp_path / "cache")
    written(tmp_path / "old.jsonl", "older", 9)
    after = made(data, tmp_path / "cache")
    assert after.path != before.path
    assert after.digest != before.digest
    assert after.source_digest != before.source_digest
    found = scan(data)
    written(tmp_path / "old.jsonl", "oldest", 9)
    with pytest.raises(DatasetError, match="was changed while it was read"):
        prepare(data, BytesTokenizer(), found, tmp_path / "new cache", lambda done, total, detail: None)


def test_every_choice_of_rows_has_a_name_of_its_own_and_none_the_old_one(tmp_path: Path) -> None:
    source = written(tmp_path / "rows.jsonl", "row", 12)
    plain = DataSpec(source=source)
    portion = Portion(source=source, stop=6, take=2)
    choices = [
        plain,
        DataSpec(source=source, start=1),
        DataSpec(source=source, holdout=4),
        DataSpec(source=source, holdout=4, part="held-out"),
        DataSpec(source=source, replay=(portion,)),
        *(
            DataSpec(source=source, replay=(msgspec.structs.replace(portion, **change),))
            for change in ({"start": 1}, {"stop": None}, {"take": 3}, {"seed": 1})
        ),
    ]
    keys = [prepared_key(data, BytesTokenizer(), scan(data)) for data in choices]
    assert len(set(keys)) == len(keys)


def test_where_earlier_rows_come_from_counts_for_what_has_to_be_imported() -> None:
    assert needs_frameworks(DataSpec(source="/a.jsonl", replay=(Portion(source="/b.parquet", take=1),)))
