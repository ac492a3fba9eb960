"""KTO's mismatched rows: an answer to another prompt, each answer once, and no longer than a training row."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_backends.torch_pairs import LabelCollator, neighbours
from backpropagate_protocol.prepared import LABELLED, Prepared, PreparedWriter


def labelled(folder: Path, prompts: list[int]) -> Prepared:
    """A sample for each prompt, good and bad in turn, with an answer of its own."""
    writer = PreparedWriter(folder, kind=LABELLED)
    for index, prompt in enumerate(prompts):
        writer.add_labelled([prompt] * 3 + [100 + index] * 3, [0, 0, 0, 1, 1, 1], index % 2 == 0)
    writer.commit(key="k", skipped=0, truncated=0, format="labelled", source_digest="d")
    return Prepared(folder)


@pytest.mark.parametrize(
    ("prompts", "ids", "others"),
    [
        ([1, 2, 3, 4], [2, 0, 3], [3, 2, 0]),
        ([1, 1, 2, 2, 3, 3], [0, 1, 2, 3, 4, 5], [4, 5, 0, 1, 2, 3]),
        ([1, 2, 1, 2], [0, 1, 2, 3], [1, 0, 3, 2]),
        ([1, 1, 2, 2], [2, 3], [0, 1]),
        ([1, 1, 2, 2], [3], [1]),
        ([1, 1, 1], [0, 1], [2, 0]),
    ],
    ids=["different", "pairs in file order", "mixed", "one prompt in the step", "one sample", "one prompt in the data"],
)
def test_a_sample_is_confronted_with_an_answer_to_another_prompt(
    tmp_path: Path, prompts: list[int], ids: list[int], others: list[int]
) -> None:
    assert neighbours(ids, labelled(tmp_path / "d", prompts)) == others


def test_where_one_prompt_fills_the_step_the_data_have_other_answers(tmp_path: Path) -> None:
    prompts = [1, 2, 3, 3, 3]
    found = neighbours([1, 2, 3, 4], labelled(tmp_path / "d", prompts))
    assert all(prompts[one] != prompts[other] for one, other in zip([1, 2, 3, 4], found, strict=True))


def test_a_mismatched_row_is_cut_where_training_rows_are(tmp_path: Path) -> None:
    data = labelled(tmp_path / "d", [1, 2])
    batch = LabelCollator(data, 0, 5).mismatched([0, 1], [1, 0])
    assert batch["input_ids"].tolist() == [[1, 1, 1, 101, 101], [2, 2, 2, 100, 100]]
    assert batch["answer"].tolist() == [[0, 0, 0, 1, 1]] * 2
