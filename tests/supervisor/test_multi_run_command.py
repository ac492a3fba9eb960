"""`multi-run` as it is typed: what begins, what goes on, what is refused; real processes on the toy backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate.keep import history
from backpropagate.keep.record import RunRow
from tests.waiting import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("d.jsonl", 60), ("e.jsonl", 40), ("few.jsonl", 2)):
        (tmp_path / name).write_text("".join(f'{{"text": "row number {i}"}}\n' for i in range(rows)))
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\nnonsense\n' * 20)
    (tmp_path / "empty.jsonl").write_text("")
    return tmp_path


def backprop(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], "INPUT_VALIDATION_FAILED", "no training data was named"),
        (["d.jsonl"], "INPUT_VALIDATION_FAILED", "what to do with d.jsonl"),
        (["--data", "nowhere.jsonl"], "INPUT_DATASET_NOT_FOUND", "nowhere.jsonl"),
        (["--data", "empty.jsonl"], "INPUT_DATASET_INVALID", "is empty"),
        (["--data", "few.jsonl"], "INPUT_DATASET_INVALID", "2 rows, too few for 5 runs"),
        (["--data", "bad.jsonl"], "INPUT_DATASET_PARSE_FAILED", "20 of 40 rows"),
        (
            ["--data", "d.jsonl", "--data", "e.jsonl", "--runs", "3"],
            "CONFIG_INVALID_SETTING",
            "2 data files are 2 runs",
        ),
        (["--data", "d.jsonl", "--merge", "soup"], "CONFIG_INVALID_SETTING", "--merge: 'soup'"),
        (["--data", "d.jsonl", "--replay", "0.6"], "CONFIG_INVALID_SETTING", "--replay: '0.6'"),
        (
            ["--data", "d.jsonl", "--density", "0.6"],
            "CONFIG_INVALID_SETTING",
            "--density means nothing to --merge slao",
        ),
        (["--data", "d.jsonl", "--backend", "mlx"], "CONFIG_INVALID_SETTING", "mlx"),
        (["--data", "d.jsonl", "--mode", "full"], "CONFIG_INVALID_SETTING", "full"),
        (["--data", "d.jsonl", "--use-dora"], "CONFIG_INVALID_SETTING", "DoRA"),
        (["--data", "d.jsonl", "--fp8"], "CONFIG_INVALID_SETTING", "fp8"),
        (
            ["--data", "d.jsonl", "--early-stopping", "1"],
            "CONFIG_INVALID_SETTING",
            "Say --early-stop N, which counts runs",
        ),
        (["--data", "d.jsonl", "--export-dir", "x"], "CONFIG_INVALID_SETTING", "nothing is exported"),
        (["--data", "d.jsonl", "--output", "d.jsonl"], "CONFIG_OUTPUT_UNWRITABLE", "d.jsonl"),
        (["--resume", "abc"], "INPUT_RUN_NOT_FOUND", "abc"),
        (["--resume", "abc", "--steps", "3"], "INPUT_VALIDATION_FAILED", "--steps"),
        (["--resume", "abc", "--data", "d.jsonl"], "INPUT_VALIDATION_FAILED", "--data"),
        (["--resume", "abc", "abc"], "INPUT_VALIDATION_FAILED", "named twice"),
        (["--append", "e.jsonl"], "INPUT_RUN_NOT_FOUND", "there is no campaign"),
        (["--append", "e.jsonl", "--runs", "2"], "INPUT_VALIDATION_FAILED", "--runs"),
        (["--append", "e.jsonl", "--fresh"], "INPUT_VALIDATION_FAILED", "--fresh"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_wish_is_one_coded_error_and_nothing_is_made(
    folder: Path, arguments: list[str], code: str, words: str
) -> None:
    there = sorted(folder.iterdir())
    backend = (
        [] if "--backend" in arguments or "--resume" in arguments or "--append" in arguments else ["--backend", "toy"]
    )
    exit_code, out, err = backprop(folder, "multi-run", *arguments, *backend)
    told = [line for line in err.splitlines() if not line.startswith("note: ")]

    assert (exit_code, out) == (1, "")
    assert told[0].startswith(f"[{code}]: ")
    assert words in err
    assert any(line.startswith("What to do: ") for line in told)
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == there


TOY = ("--backend", "toy", "--lora-r", "2", "--steps", "4")


def campaign(folder: Path, *arguments: str) -> dict[str, object]:
    """One that ends well, as its document."""
    code, out, err = backprop(folder, "multi-run", *arguments, "--json")
    assert (code, err) == (0, ""), out + err
    document: dict[str, object] = json.loads(out)["campaign"]
    return document


def test_a_campaign_ends_with_its_answer_and_its_table_on_stdout(folder: Path) -> None:
    code, out, err = backprop(folder, "multi-run", "--data", "d.jsonl", "--runs", "2", *TOY)
    lines = out.splitlines()

    assert code == 0, err
    assert [line.split()[0] for line in lines[:5]] == ["campaign", "status", "runs", "merged", "adapter"]
    assert "runs     2/2" in lines
    assert "merged   by slao; the newest run counts 0.71" in lines
    assert "accuracy on held-out rows, % of tokens" in lines
    assert any(line.startswith("average accuracy") for line in lines)
    assert "run 2: d 31-60, and 3 earlier rows" in err.splitlines()
    assert "note: d has 60 rows: each of the 2 runs trains on 30" in err.splitlines()


def test_several_files_are_one_run_each(folder: Path) -> None:
    document = campaign(folder, "--data", "d.jsonl", "--data", "e.jsonl", *TOY)

    assert document["tasks"] == ["d", "e"]
    assert [run["rule"] for run in document["runs"]] == ["slao", "slao"]  # type: ignore[attr-defined]  # a list of objects


def test_a_campaign_that_failed_is_gone_on_with_by_the_same_command(folder: Path) -> None:
    """The fault strikes in every attempt of the first supervisor; the second takes it to be mended."""
    begin = ("--data", "d.jsonl", "--runs", "2", *TOY)
    code, _, err = backprop(folder, "multi-run", *begin, "--fault", "error@2:0@train-2")
    assert code == 2
    assert "run 2 of 2 (d 31-60)" in err
    (broken,) = [row for row in history.list_rows(folder / "output") if row.session_kind == "multi_run"]

    code, _, err = backprop(folder, "multi-run", *begin, "--lr", "1e-3")
    assert code == 1
    assert "begun with other wishes: train.learning_rate 0.0002 (now 0.001)" in err
    assert f"backprop resume {broken.run_id[:8]}" in err
    assert "--fresh" in err

    for spec in (folder / "output" / "runs").glob("*/spec.json"):
        spec.write_text(json.dumps({**json.loads(spec.read_text()), "faults": []}))
    document = campaign(folder, *begin)
    assert document["run_id"] == broken.run_id
    assert len(list((folder / "output" / "runs").iterdir())) == 3


def test_fresh_begins_anew_beside_one_that_is_not_finished(folder: Path) -> None:
    begin = ("--data", "d.jsonl", "--runs", "1", *TOY)
    assert backprop(folder, "multi-run", *begin, "--fault", "error@2:0")[0] == 2
    document = campaign(folder, *begin, "--fresh")

    campaigns = [row.run_id for row in history.list_rows(folder / "output") if row.session_kind == "multi_run"]
    assert len(campaigns) == 2
    assert campaigns[0] == document["run_id"]


def test_a_finished_campaign_is_given_one_more_run(folder: Path) -> None:
    first = campaign(folder, "--data", "d.jsonl", "--runs", "1", *TOY)
    again = campaign(folder, "--append", "e.jsonl")

    assert again["run_id"] == first["run_id"]
    assert again["tasks"] == ["d 1-60", "e"]
    spec = json.loads((folder / "output" / "runs" / str(again["runs"][1]["run_id"]) / "spec.json").read_text())  # type: ignore[index]  # a list of objects
    assert [(portion["take"], portion["stop"]) for portion in spec["data"]["replay"]] == [(4, 60)]


def test_what_cannot_be_appended_is_refused_and_the_campaign_stays_finished(folder: Path) -> None:
    campaign(folder, "--data", "d.jsonl", "--runs", "1", *TOY)
    few, _, told = backprop(folder, "multi-run", "--append", "few.jsonl")
    bad, _, also = backprop(folder, "multi-run", "--append", "bad.jsonl")
    run = next(row.run_id for row in history.list_rows(folder / "output") if row.parent)
    link, _, third = backprop(folder, "multi-run", "--append", "e.jsonl", run)

    assert (few, bad, link) == (1, 1, 1)
    assert "2 rows, and this campaign holds out every 20th" in told
    assert also.startswith("[INPUT_DATASET_PARSE_FAILED]: ")
    assert "is a run of campaign" in third
    assert history.list_rows(folder / "output", "completed")[-1].session_kind == "multi_run"


def test_a_run_is_appended_without_replay_where_the_earlier_file_is_gone(folder: Path) -> None:
    campaign(folder, "--data", "d.jsonl", "--runs", "1", *TOY)
    (folder / "d.jsonl").unlink()
    code, _, err = backprop(folder, "multi-run", "--append", "e.jsonl", "--replay", "0.2")
    assert code == 1
    assert err.startswith("[INPUT_DATASET_NOT_FOUND]: ")

    code, _, err = backprop(folder, "multi-run", "--append", "e.jsonl")
    assert "note: nothing earlier is replayed: " in err


def test_a_detached_campaign_goes_on_by_itself(folder: Path) -> None:
    code, out, err = backprop(folder, "multi-run", "--data", "d.jsonl", "--runs", "1", *TOY, "--detach", "--json")
    run_id = json.loads(out)["run_id"]
    eventually(lambda: the_campaign(folder).status == "completed", "it ends")

    assert (code, err) == (0, "")
    assert the_campaign(folder).run_id == run_id


def the_campaign(folder: Path) -> RunRow:
    return next(row for row in history.list_rows(folder / "output") if row.session_kind == "multi_run")


def test_a_finished_campaign_is_not_gone_on_with_but_can_be_added_to(folder: Path) -> None:
    campaign(folder, "--data", "d.jsonl", "--runs", "1", *TOY)
    code, _, err = backprop(folder, "multi-run", "--resume", "latest")

    assert code == 1
    assert err.startswith("[STATE_RUN_FINISHED]: ")
    assert f"backprop multi-run --append DATA {the_campaign(folder).run_id[:8]}" in err


def test_campaigns_are_listed_as_a_tree(folder: Path) -> None:
    document = campaign(folder, "--data", "d.jsonl", "--runs", "2", *TOY)
    plain = backprop(folder, "list-runs")[1].splitlines()
    rows = json.loads(backprop(folder, "list-runs", "--limit", "1", "--json")[1])["runs"]
    flat = backprop(folder, "list-runs", "--flat")[1]
    shown = backprop(folder, "show-run", "latest")[1]

    short = str(document["run_id"])[:8]
    assert [line.split("  ")[0][:2] for line in plain[2:]] == ["├ ", "└ "]
    assert plain[1].startswith(f"{short}  ")
    assert "2 runs on d.jsonl" in plain[1]
    assert [(row["parent"], row["link"]) for row in rows] == [
        (None, 0),
        (document["run_id"], 1),
        (document["run_id"], 2),
    ]
    assert "├" not in flat
    assert shown.splitlines()[0].endswith(str(document["run_id"]))
    assert "accuracy on held-out rows" in shown


def test_a_run_of_a_campaign_is_not_resumed_by_itself(folder: Path) -> None:
    begin = ("--data", "d.jsonl", "--runs", "1", *TOY)
    assert backprop(folder, "multi-run", *begin, "--fault", "error@2:0")[0] == 2
    link = next(row.run_id for row in history.list_rows(folder / "output") if row.parent)
    code, _, err = backprop(folder, "resume", link)

    assert code == 1
    assert err.startswith("[STATE_RUN_OF_CAMPAIGN]: ")
    assert f"backprop resume {the_campaign(folder).run_id[:8]}" in err


def test_a_campaign_is_replayed_over_the_same_data(folder: Path) -> None:
    first = campaign(folder, "--data", "d.jsonl", "--runs", "2", *TOY)
    code, out, err = backprop(folder, "replay", "latest", "--json")
    again = json.loads(out)["campaign"]
    compared = json.loads(backprop(folder, "diff-runs", str(first["run_id"]), again["run_id"], "--json")[1])

    assert code == 0, err
    assert (again["scores"], again["losses"]) == (first["scores"], first["losses"])
    assert (compared["asked"], compared["same_samples"]) == ([], True)
    with (folder / "d.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    assert backprop(folder, "replay", str(first["run_id"]))[0] == 1
