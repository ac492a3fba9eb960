"""A campaign's scores in words: every number in its place, on terminals of any width, whatever the tasks are called."""

from __future__ import annotations

import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate.events import LinkScored
from backpropagate.measured import LinkScore
from backpropagate.watch.forgetting_table import lines, one_line
from backpropagate_protocol.campaign_report import CampaignReport, RuleTried, RunPart, ScoreCell, Totals


def report(names: tuple[str, ...], *, missing: tuple[tuple[int, int], ...] = ()) -> CampaignReport:
    """Run i scores 0.6 - 0.1 (i - t) on task t; unmerged it is better on its own task and worse on the others."""
    n = len(names)

    def cell(candidate: str, run: int, task: int, accuracy: float) -> ScoreCell:
        return ScoreCell(
            candidate=candidate, run=run, task=task, accuracy=accuracy, loss=2 - accuracy, tokens=9, rows=1
        )

    scores = [cell("merged", i, t, 0.6 - 0.01 * (i - 1 - t)) for i in range(1, n + 1) for t in range(i) if (i, t) not in missing]  # fmt: skip
    scores += [cell("newest", n, t, 0.7 if t == n - 1 else 0.3) for t in range(n)]
    scores += [cell("base", n, t, 0.2) for t in range(n)]
    totals = Totals(
        run=n,
        average_accuracy=0.59,
        average_loss=1.41,
        backward_transfer=-0.015,
        backward_loss=0.015,
        forgetting=0.015,
        learning=0.6,
        worst_task=0,
        worst_accuracy=0.58,
        missing=missing,
    )
    part = RunPart(run=n, name=names[-1], run_id="r", adapter="a", coefficient=0.577)
    return CampaignReport(
        run_id="c", tasks=names, held_out=tuple(range(n)), scores=tuple(scores), totals=(totals,), runs=(part,)
    )


def columns(text: str) -> int:
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def test_the_table_of_three_runs() -> None:
    assert lines(report(("monday", "tuesday", "wednesday"))) == [
        "accuracy on held-out rows, % of tokens",
        "                1 monday  2 tuesday  3 wednesday  mean",
        "after run 1         60.0                          60.0",
        "after run 2         59.0       60.0               59.5",
        "after run 3         58.0       59.0         60.0  59.0",
        "run 3 unmerged      30.0       30.0         70.0  43.3",
        "base                20.0       20.0         20.0  20.0",
        "",
        "loss on held-out rows, nats per token",
        "                1 monday  2 tuesday  3 wednesday   mean",
        "after run 1        1.400                          1.400",
        "after run 2        1.410      1.400               1.405",
        "after run 3        1.420      1.410        1.400  1.410",
        "run 3 unmerged     1.700      1.700        1.300  1.567",
        "base               1.800      1.800        1.800  1.800",
        "",
        "average accuracy   59.0 %",
        "backward transfer  -1.5 points  (loss +0.015)",
        "forgetting         +1.5 points",
        "learning           60.0 %",
        "worst task         58.0 %  1 monday",
        "newest run         merged in with a weight of 0.58",
        "on its own task    70.0 % unmerged, 60.0 % merged",
    ]


def test_a_narrow_terminal_gets_the_same_numbers_below_one_another() -> None:
    narrow = lines(report(("monday", "tuesday", "wednesday")), width=30)
    assert all(columns(line) <= 30 for line in narrow)
    assert narrow[2:9] == [
        "                1 monday",
        "after run 1         60.0",
        "after run 2         59.0",
        "after run 3         58.0",
        "run 3 unmerged      30.0",
        "base                20.0",
        "",
    ]
    assert sum(line.endswith("mean") for line in narrow) == 2


@given(
    st.lists(st.text(max_size=30), min_size=1, max_size=12).map(tuple),
    st.integers(1, 200),
)
def test_no_line_is_wider_than_the_terminal(names: tuple[str, ...], width: int) -> None:
    for line in lines(report(names), width):
        assert columns(line) <= max(width, 24)
        assert line.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in line)
        assert line == line.rstrip()


@pytest.mark.parametrize("name", ["日本語のデータセットです", "e\u0301te\u0301", "a\x1b[31mred", "two\nlines"])
def test_a_name_of_any_kind_keeps_the_columns_in_line(name: str) -> None:
    said = lines(report((name, "b")))
    table = said[1:6]
    assert len({columns(line) for line in table if line.rstrip()[-1].isalnum()}) == 1
    assert not any("\x1b" in line or "\n" in line for line in said)


def test_cells_that_are_missing_are_told() -> None:
    said = lines(report(("a", "b"), missing=((1, 0),)))
    assert "after run 1" not in "\n".join(said[:6])
    assert said[-1] == "not scored: task 1 after run 1"


def test_what_is_not_known_has_a_dash() -> None:
    cell = ScoreCell(candidate="merged", run=1, task=0, accuracy=0.5, loss=1.0)
    first = CampaignReport(
        run_id="c",
        tasks=("a",),
        held_out=(0,),
        scores=(cell,),
        totals=(Totals(run=1, average_accuracy=0.5, learning=0.5),),
    )
    assert lines(first)[-4:] == [
        "average accuracy   50.0 %",
        "backward transfer  -",
        "forgetting         -",
        "learning           50.0 %",
    ]


def test_a_campaign_without_scores_has_no_table() -> None:
    assert lines(CampaignReport(run_id="c", tasks=("a",), held_out=(0,))) == []


def test_the_rule_that_was_chosen_has_a_star() -> None:
    some = report(("a", "b"))
    tried = tuple(
        RuleTried(
            rule=rule, average_accuracy=aa, average_loss=1.5, worst_task=0, worst_accuracy=0.4, chosen=rule == "ties"
        )
        for rule, aa in (("ties", 0.6), ("slao-product", 0.55))
    )
    whole = CampaignReport(
        run_id="c", tasks=some.tasks, held_out=some.held_out, scores=some.scores, totals=some.totals, rules=tried
    )
    assert lines(whole)[-3:] == [
        "merges tried, by average accuracy",
        "* ties          60.0 %  loss 1.500  worst 40.0 %",
        "  slao-product  55.0 %  loss 1.500  worst 40.0 %",
    ]


def test_without_a_merge_there_is_no_weight_to_tell() -> None:
    some = report(("a", "b"))
    unmerged = msgspec.structs.replace(
        some, runs=(msgspec.structs.replace(some.runs[0], rule="none", coefficient=1.0),)
    )
    assert not [line for line in lines(unmerged) if line.startswith("newest run")]


def test_one_evaluation_in_one_line() -> None:
    def told(*scores: tuple[str, int, float]) -> LinkScored:
        made = tuple(LinkScore(name, task, 2 - accuracy, accuracy, 9, 1) for name, task, accuracy in scores)
        return LinkScored(time=0.0, run_id="c", link=2, scores=made)

    both = told(("merged", 0, 0.5), ("merged", 1, 0.7), ("base", 0, 0.2), ("base", 1, 0.3))
    assert one_line(both, ("monday", "tuesday")) == (
        "after run 2: 60.0 % (loss 1.400) on average of 2 tasks, worst: 1 monday 50.0 %; the base: 25.0 % (loss 1.750)"
    )
    assert one_line(told(("merged", 1, 0.5))) == "after run 2: 50.0 % (loss 1.500) on its held-out rows"
    assert one_line(told()) == "run 2 has no scores"
