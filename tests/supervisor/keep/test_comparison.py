"""Two runs side by side: which settings differ, what is no difference, and losses at the same steps."""

from __future__ import annotations

import msgspec

from backpropagate.keep.comparison import Side, compare, side_by_side
from backpropagate.keep.differences import Difference, differences
from backpropagate.keep.record import RunRow
from backpropagate_protocol.spec import CampaignSpec, DataSpec, ExportSpec, ModelSpec, RunSpec, TrainSpec


def spec(run_id: str = "11111111-0000-4000-8000-000000000000") -> RunSpec:
    return RunSpec(
        run_id=run_id,
        created="2026-01-01T00:00:00",
        output="/out",
        model=ModelSpec(name="tiny", path="/tiny"),
        data=DataSpec(source="/d.jsonl"),
        export=ExportSpec(format="lora", destination=f"/out/exports/{run_id[:8]}", name=f"tiny-{run_id[:8]}"),
    )


OTHER = "22222222-0000-4000-8000-000000000000"


def test_what_every_run_has_for_itself_is_no_difference() -> None:
    other = msgspec.structs.replace(spec(OTHER), created="2027-01-01T00:00:00", detached=True, verbose=True)

    assert differences(spec(), other) == []


def test_a_setting_that_differs_is_named_with_both_values() -> None:
    other = msgspec.structs.replace(spec(OTHER), train=TrainSpec(learning_rate=1e-3), name="second")

    assert differences(spec(), other) == [
        Difference("train.learning_rate", 2e-4, 1e-3),
        Difference("name", None, "second"),
    ]


def test_the_runs_of_a_campaign_are_numbered() -> None:
    def campaign(source: str) -> RunSpec:
        runs = (DataSpec(source="/a.jsonl"), DataSpec(source=source))
        return msgspec.structs.replace(spec(), kind="campaign", campaign=CampaignSpec(runs=runs, names=("a", "b")))

    assert differences(campaign("/b.jsonl"), campaign("/c.jsonl")) == [
        Difference("campaign.runs.2.source", "/b.jsonl", "/c.jsonl")
    ]


def test_of_a_run_that_only_one_campaign_has_the_data_are_named() -> None:
    def campaign(*sources: str) -> RunSpec:
        runs = tuple(DataSpec(source=source, holdout=20) for source in sources)
        return msgspec.structs.replace(spec(), campaign=CampaignSpec(runs=runs, names=()))

    assert differences(campaign("/a.jsonl"), campaign("/a.jsonl", "/b.jsonl")) == [
        Difference("campaign.runs.2.source", None, "/b.jsonl")
    ]


def test_losses_are_set_side_by_side_at_the_same_steps() -> None:
    first = [(step, 1.0 / step) for step in range(1, 11)]
    second = [(2, 0.9), (4, 0.8)]

    assert side_by_side(first, second, 5) == [(2, 0.5, 0.9), (4, 0.25, 0.8), (6, 1 / 6, None), (8, 0.125, None), (10, 0.1, None)]  # fmt: skip
    assert side_by_side([(9, 1.0)], [], 3) == [(9, 1.0, None)]
    assert side_by_side([], [], 5) == []


def test_equal_orders_of_finished_runs_are_the_same_samples() -> None:
    def side(order: int, status: str = "completed") -> Side:
        return Side(
            spec(), RunRow(run_id="x", status=status, order=order, samples_seen=8, packages={"torch": str(order)})
        )

    assert compare(side(7), side(7)).same_samples is True
    assert compare(side(7), side(8)).same_samples is False
    assert compare(side(7), side(7, "interrupted")).same_samples is None
    assert compare(side(7), side(8)).packages == (Difference("torch", "7", "8"),)


def test_held_out_losses_are_compared_where_there_are_any() -> None:
    plain = RunRow(run_id="a")
    chosen = RunRow(run_id="b", eval_history=[(4, 1.5), (8, 1.25)], best_step=8, best_loss=1.25)
    found = {
        each.name: (each.first, each.second) for each in compare(Side(spec(), plain), Side(spec(), chosen)).came_out
    }
    assert (found["best_loss"], found["best_step"]) == ((None, 1.25), (0, 8))
    assert "best_loss" not in {each.name for each in compare(Side(spec(), plain), Side(spec(), plain)).came_out}
