"""From wishes to a campaign: what each run trains on, and every wish that is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate.wishes.campaign_spec import Wanted, campaign_run
from backpropagate.wishes.row_counts import Counter, usable
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import BackpropagateError, DatasetParseError, DatasetValidationError
from backpropagate_protocol.spec import CampaignSpec, DataSpec


def lines(path: Path, rows: int) -> str:
    path.write_text("".join(f'{{"text": "row {i}"}}\n' for i in range(rows)))
    return str(path)


def counted(data: DataSpec) -> int:
    """The rows of a file of lines, as a child would count them."""
    rows = len(Path(data.source).read_text().splitlines())
    return rows if data.samples is None else min(rows, data.samples)


def with_counter(python: str | None) -> Counter:
    return counted


def wanted(tmp_path: Path, rows: list[int], environ: dict[str, str] | None = None, **arguments: object) -> Wanted:
    files = [lines(tmp_path / f"week{i}.jsonl", count) for i, count in enumerate(rows, 1)]
    wishes = {"backend": "toy", "output_dir": tmp_path / "out", **arguments}
    return campaign_run(Settings(wishes, environ=environ or {}, folder=tmp_path), files, with_counter)


def campaign(
    tmp_path: Path, rows: list[int], environ: dict[str, str] | None = None, **arguments: object
) -> CampaignSpec:
    chosen = wanted(tmp_path, rows, environ, **arguments).spec.campaign
    assert chosen is not None
    return chosen


def refusal(tmp_path: Path, rows: list[int], **arguments: object) -> str:
    with pytest.raises(BackpropagateError) as caught:
        wanted(tmp_path, rows, None, **arguments)
    assert caught.value.suggestion
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_one_file_is_cut_into_five_runs_of_a_thousand_rows(tmp_path: Path) -> None:
    spec = wanted(tmp_path, [6000]).spec
    runs = campaign(tmp_path, [6000]).runs

    assert (spec.kind, spec.train.steps, spec.data) == ("campaign", 100, runs[0])
    assert [(run.start, run.samples, run.holdout) for run in runs] == [(i * 1000, 1000, 20) for i in range(5)]
    assert [[portion.take for portion in run.replay] for run in runs] == [[], [106], [53, 53], [35, 35, 36], [26, 26, 27, 27]]  # fmt: skip


def test_several_files_are_one_run_each_and_used_whole(tmp_path: Path) -> None:
    chosen = campaign(tmp_path, [40, 60, 50])

    assert chosen.names == ("week1", "week2", "week3")
    assert [(run.start, run.samples) for run in chosen.runs] == [(0, 40), (0, 60), (0, 50)]
    assert [(p.source[-11:], p.stop, p.take) for p in chosen.runs[2].replay] == [("week1.jsonl", 40, 2), ("week2.jsonl", 60, 3)]  # fmt: skip


def test_several_files_are_cut_off_where_that_was_said(tmp_path: Path) -> None:
    assert [run.samples for run in campaign(tmp_path, [40, 60], samples_per_run=50).runs] == [40, 50]
    assert len(campaign(tmp_path, [40, 60], runs=2).runs) == 2
    assert len(campaign(tmp_path, [40, 60], {"BACKPROPAGATE_CAMPAIGN__RUNS": "7"}).runs) == 2


def test_a_short_file_is_shared_out_and_that_is_said(tmp_path: Path) -> None:
    found = wanted(tmp_path, [52], runs=5)
    assert found.spec.campaign is not None

    assert [run.samples for run in found.spec.campaign.runs] == [11, 11, 10, 10, 10]
    assert found.notices == (
        "week1 has 52 rows: each of the 5 runs trains on 10 or 11",
        "every 10th row is held out for the evaluation, since a run has only 10 rows",
    )


def test_a_handful_of_rows_is_trained_on_without_evaluation(tmp_path: Path) -> None:
    found = wanted(tmp_path, [5], runs=2)
    assert found.spec.campaign is not None

    assert (found.spec.campaign.runs[0].holdout, found.spec.campaign.evaluate) == (0, False)
    assert "nothing is held out or evaluated, since a run has only 2 rows" in found.notices


def test_replay_is_a_tenth_unless_said_otherwise(tmp_path: Path) -> None:
    assert campaign(tmp_path, [200], runs=2, samples_per_run=100).replay == 0.1
    assert campaign(tmp_path, [200], runs=2, replay_ratio=0).runs[1].replay == ()
    half = campaign(tmp_path, [200], runs=2, samples_per_run=100, replay_ratio=0.5)
    assert half.runs[1].replay[0].take == 95


def test_rows_stay_held_out_where_only_the_evaluation_is_left_out(tmp_path: Path) -> None:
    chosen = campaign(tmp_path, [200], evaluate=False)

    assert (chosen.evaluate, chosen.runs[0].holdout) == (False, 20)
    assert campaign(tmp_path, [200], holdout=0).evaluate is False


def test_a_preset_says_how_many_runs(tmp_path: Path) -> None:
    chosen = campaign(tmp_path, [9000], preset="quality")

    assert (len(chosen.runs), chosen.runs[0].samples, chosen.replay) == (10, 900, 0.1)
    assert len(campaign(tmp_path, [9000], preset="quality", runs=2).runs) == 2


def test_the_same_wishes_over_the_same_files_are_the_same_campaign(tmp_path: Path) -> None:
    assert campaign(tmp_path, [90], seed=3) == campaign(tmp_path, [90], seed=3)
    assert campaign(tmp_path, [90], seed=3) != campaign(tmp_path, [90], seed=4)


@pytest.mark.parametrize(
    ("rows", "arguments", "code", "words"),
    [
        ([], {}, "INPUT_VALIDATION_FAILED", "no training data"),
        ([4], {"runs": 5}, "INPUT_DATASET_INVALID", "4 rows, too few for 5 runs"),
        ([40, 40], {"runs": 3}, "CONFIG_INVALID_SETTING", "2 data files are 2 runs, and --runs says 3"),
        ([40], {"runs": 0}, "CONFIG_INVALID_SETTING", "runs"),
        ([40], {"runs": "many"}, "CONFIG_INVALID_SETTING", "runs"),
        ([40], {"samples_per_run": 0}, "CONFIG_INVALID_SETTING", "samples_per_run"),
        ([40], {"replay_ratio": 0.51}, "CONFIG_INVALID_SETTING", "replay_ratio"),
        ([40], {"replay_ratio": -0.1}, "CONFIG_INVALID_SETTING", "replay_ratio"),
        ([40], {"merge": "soup"}, "CONFIG_INVALID_SETTING", "merge"),
        ([40], {"merge_floor": 1.5}, "CONFIG_INVALID_SETTING", "merge_floor"),
        ([40], {"merge_weight": 0}, "CONFIG_INVALID_SETTING", "merge_weight"),
        ([40], {"density": 0}, "CONFIG_INVALID_SETTING", "density"),
        ([40], {"merge": "ema", "density": 0.3}, "CONFIG_INVALID_SETTING", "--density means nothing to --merge ema"),
        ([40], {"merge": "ties", "merge_floor": 0.3}, "CONFIG_INVALID_SETTING", "--merge-floor"),
        ([40], {"merge_weight": 0.3}, "CONFIG_INVALID_SETTING", "--merge-weight means nothing to --merge slao"),
        ([40], {"eval_split": 0.2}, "CONFIG_INVALID_SETTING", "--eval-split would have no effect"),
        ([40], {"eval_steps": 2}, "CONFIG_INVALID_SETTING", "--eval-steps would have no effect"),
        ([40], {"early_stopping": 1}, "CONFIG_INVALID_SETTING", "--early-stopping would have no effect"),
        ([40], {"keep_best": True}, "CONFIG_INVALID_SETTING", "--keep-best would have no effect"),
        ([40], {"evaluate": False, "eval_rows": 5}, "CONFIG_INVALID_SETTING", "--eval-rows would have no effect"),
        ([40], {"holdout": 0, "eval_rows": 5}, "CONFIG_INVALID_SETTING", "--eval-rows would have no effect"),
        ([40], {"merge": "auto", "evaluate": False}, "CONFIG_INVALID_SETTING", "--merge auto"),
        ([40], {"merge": "auto", "holdout": 0}, "CONFIG_INVALID_SETTING", "--merge auto"),
        ([8], {"merge": "auto", "runs": 4}, "CONFIG_INVALID_SETTING", "too few rows to hold any out"),
        ([8], {"early_stop": 2, "runs": 4}, "CONFIG_INVALID_SETTING", "--early-stop"),
        ([40], {"early_stop": 1, "evaluate": False}, "CONFIG_INVALID_SETTING", "--early-stop"),
        ([40], {"early_stop": -1}, "CONFIG_INVALID_SETTING", "early_stop"),
        ([40], {"eval_rows": 0}, "CONFIG_INVALID_SETTING", "eval_rows"),
        ([40], {"holdout": 1}, "CONFIG_INVALID_SETTING", "--holdout 1"),
        ([40], {"holdout": 9, "runs": 5}, "CONFIG_INVALID_SETTING", "--holdout 9"),
        ([40], {"mode": "full"}, "CONFIG_INVALID_SETTING", "a full fine-tune has none"),
        ([40], {"method": "orpo", "backend": "cpu", "model": "tiny"}, "CONFIG_INVALID_SETTING", "method orpo cannot"),
        ([40], {"use_dora": True}, "CONFIG_INVALID_SETTING", "DoRA"),
        ([40], {"use_dora": True, "merge": "average"}, "CONFIG_INVALID_SETTING", "DoRA"),
        ([40], {"steps": 3, "epochs": 2}, "CONFIG_INVALID_SETTING", "epochs"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_wish_is_one_coded_error_and_nothing_is_made(
    tmp_path: Path, rows: list[int], arguments: dict[str, object], code: str, words: str
) -> None:
    said = refusal(tmp_path, rows, **arguments)

    assert said.startswith(f"[{code}]: ")
    assert words in said


def test_dora_is_trained_where_nothing_is_merged(tmp_path: Path) -> None:
    assert wanted(tmp_path, [40], use_dora=True, merge="none").spec.lora.use_dora


def test_bad_rows_are_refused_now_rather_than_in_the_run_that_meets_them() -> None:
    data = DataSpec(source="d.jsonl")
    with pytest.raises(DatasetParseError, match="2 of 10 rows cannot be used"):
        usable(data, 8, 2, ["line 3: is not JSON: that"], parse=True)
    with pytest.raises(DatasetValidationError, match="line 3"):
        usable(data, 8, 2, ["line 3: has no answer"])
    assert usable(DataSpec(source="d.jsonl", on_bad_row="skip"), 8, 2, []) == 10
