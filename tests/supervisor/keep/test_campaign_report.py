"""campaign.json: made from the journal of a campaign at any point of it, and read back as it was written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate.events import LinkEnded, LinkMerged, LinkScored
from backpropagate.judge.campaign import Facts
from backpropagate.keep import campaign_report
from backpropagate.measured import LinkScore
from backpropagate_protocol.campaign_report import CampaignReport
from backpropagate_protocol.combined import COMBINED, Combined, CombinedRun
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import CampaignSpec, DataSpec, ModelSpec, RunSpec

_ID = "6f1c8ad0-0000-4000-8000-000000000001"


def campaign(tmp_path: Path, *, holdouts: tuple[int, ...] = (20, 20)) -> RunSpec:
    runs = tuple(DataSpec(source=f"week{i}.jsonl", holdout=each) for i, each in enumerate(holdouts, 1))
    names = tuple(f"week{i}" for i in range(1, len(runs) + 1))
    return RunSpec(
        run_id=_ID,
        created="",
        output=str(tmp_path),
        model=ModelSpec(name="tiny", path="tiny"),
        data=runs[0],
        kind="campaign",
        campaign=CampaignSpec(runs=runs, names=names),
    )


def ended(link: int) -> LinkEnded:
    return LinkEnded(time=10.0 * link, run_id=_ID, link=link, link_run=f"run-{link}", name=f"week{link}", adapter=f"/a{link}", steps=7, final_loss=1.5)  # fmt: skip


def merged(link: int, folder: Path, rule: str = "slao", *, chosen: bool = False) -> LinkMerged:
    return LinkMerged(time=10.0 * link + 1, run_id=_ID, link=link, folder=str(folder), rule=rule, coefficient=link**-0.5, digest=f"m{link}", chosen=chosen)  # fmt: skip


def scored(link: int, **accuracies: list[float]) -> LinkScored:
    told = tuple(
        LinkScore(name.replace("rule_", "rule:"), task, 1 - accuracy, accuracy, 100, 10)
        for name, row in accuracies.items()
        for task, accuracy in enumerate(row)
    )
    return LinkScored(time=10.0 * link + 2, run_id=_ID, link=link, scores=told)


def two_runs(spec: RunSpec, folder: Path) -> Facts:
    facts = Facts.of(spec)
    for event in (
        ended(1),
        merged(1, folder),
        scored(1, merged=[0.6], base=[0.2]),
        ended(2),
        merged(2, folder),
        scored(2, merged=[0.5, 0.7], newest=[0.4, 0.8], base=[0.2, 0.3]),
    ):
        facts.event(event)
    return facts


def test_the_report_says_what_was_scored_and_what_it_comes_to(tmp_path: Path) -> None:
    spec = campaign(tmp_path)
    report = campaign_report.make(spec, two_runs(spec, tmp_path))
    assert report.tasks == ("week1", "week2")
    assert report.updated == "1970-01-01T00:00:22Z"
    assert [(c.candidate, c.run, c.task) for c in report.scores] == [
        ("merged", 1, 0), ("merged", 2, 0), ("merged", 2, 1), ("newest", 2, 0), ("newest", 2, 1),
        ("base", 1, 0), ("base", 2, 0), ("base", 2, 1),
    ]  # fmt: skip
    first, second = report.totals
    assert (first.average_accuracy, first.backward_transfer) == (0.6, None)
    assert second.average_accuracy == pytest.approx(0.6)
    assert second.backward_transfer == pytest.approx(-0.1)
    assert (second.worst_task, second.worst_accuracy) == (0, 0.5)
    assert [(part.run, part.run_id, part.coefficient) for part in report.runs] == [
        (1, "run-1", 1.0),
        (2, "run-2", 2**-0.5),
    ]
    assert (report.rule, report.adapter_digest) == ("slao", "m2")


def test_before_anything_is_done_there_is_a_report_too(tmp_path: Path) -> None:
    spec = campaign(tmp_path)
    report = campaign_report.make(spec, Facts.of(spec))
    assert (report.runs, report.scores, report.totals, report.wanted_runs) == ((), (), (), 2)


def test_the_weights_are_those_that_the_merge_itself_wrote_down(tmp_path: Path) -> None:
    spec, folder = campaign(tmp_path), tmp_path / "merge"
    folder.mkdir()
    parts = tuple(CombinedRun(digest="d", coefficient=c, weight=w) for c, w in ((1.0, 0.25), (0.75, 0.75)))
    combined = Combined(
        link=2,
        rule="slao",
        coefficient=0.75,
        floor=0,
        weight=0.5,
        density=0.5,
        seed=0,
        runs=parts,
        state="",
        files={},
        numpy="2",
    )
    (folder / COMBINED).write_bytes(msgspec.json.encode(combined))
    run_dir = OutputDir(tmp_path).run(spec.run_id)
    run_dir.path.mkdir(parents=True)
    report = campaign_report.write(run_dir, spec, two_runs(spec, folder))
    assert [part.weight for part in report.runs] == [0.25, 0.75]
    assert campaign_report.read(run_dir) == report
    assert run_dir.campaign_report.read_bytes().endswith(b"}\n")


def test_a_task_without_held_out_rows_is_no_hole_in_the_report(tmp_path: Path) -> None:
    spec = campaign(tmp_path, holdouts=(20, 0))
    facts = Facts.of(spec)
    for event in (ended(1), merged(1, tmp_path), scored(1, merged=[0.6]), ended(2), merged(2, tmp_path), scored(2, merged=[0.5])):  # fmt: skip
        facts.event(event)
    report = campaign_report.make(spec, facts)
    assert (report.tasks, report.held_out) == (("week1", "week2"), (0,))
    assert report.totals[-1].missing == ()
    assert report.totals[-1].backward_transfer == pytest.approx(-0.1)


def test_rules_that_were_tried_are_told_the_best_first(tmp_path: Path) -> None:
    spec = campaign(tmp_path)
    facts = two_runs(spec, tmp_path)
    facts.event(merged(2, tmp_path, "ties", chosen=True))
    facts.event(scored(2, merged=[0.6, 0.8], rule_slao=[0.5, 0.7], rule_ties=[0.6, 0.8]))
    report = campaign_report.make(spec, facts)
    assert [(rule.rule, rule.chosen) for rule in report.rules] == [("ties", True), ("slao", False)]
    assert report.rule == "ties"
    assert {cell.candidate for cell in report.scores} == {"merged", "base"}


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_report_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    run_dir = OutputDir(tmp_path).run(_ID)
    run_dir.path.mkdir(parents=True)
    if content is not None:
        run_dir.campaign_report.write_bytes(content)
    assert campaign_report.read(run_dir) is None


def test_a_newer_versions_report_can_be_read(tmp_path: Path) -> None:
    spec = campaign(tmp_path)
    plain = msgspec.to_builtins(campaign_report.make(spec, two_runs(spec, tmp_path)))
    assert msgspec.json.decode(msgspec.json.encode({**plain, "new": 1}), type=CampaignReport).run_id == _ID
