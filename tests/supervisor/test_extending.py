"""One more run for a campaign: only when it is finished, only alone, and never the same file twice; files that changed are told."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backpropagate.drive.extending import extend
from backpropagate.events import CampaignExtended, LinkScored, Noticed
from backpropagate.keep import history, journal, locks, runs
from backpropagate.wishes.campaign_again import Extension
from backpropagate_protocol.errors import BusyError, ConfigurationError
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import DataSpec

TOY = ("--backend", "toy", "--steps", "4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("a.jsonl", 60), ("b.jsonl", 40), ("c.jsonl", 40)):
        (tmp_path / name).write_text("".join(f'{{"text": "row {name} {i}"}}\n' for i in range(rows)))
    return tmp_path


def multi_run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "backpropagate", "multi-run", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )
    return done.returncode, done.stderr


def begun(folder: Path, *arguments: str) -> RunDir:
    code, said = multi_run(folder, "--data", "a.jsonl", "--data", "b.jsonl", *TOY, *arguments)
    assert code in (0, 2), said
    output = OutputDir(folder / "output")
    row = next(row for row in history.list_rows(output) if row.session_kind == "multi_run")
    return output.run(row.run_id)


def extensions(home: RunDir) -> list[CampaignExtended]:
    return [event for event in journal.read(home.events) if isinstance(event, CampaignExtended)]


def one_more(folder: Path) -> Extension:
    return Extension(DataSpec(source=str(folder / "c.jsonl"), holdout=20), "c")


def test_a_folder_in_use_is_busy_and_nothing_is_written_down(folder: Path) -> None:
    home = begun(folder)
    with locks.hold(home.output.lock, "another", "the folder"):
        code, said = multi_run(folder, "--append", "c.jsonl")
    assert (code, said.split(":")[0]) == (75, "[STATE_BUSY]")
    assert extensions(home) == []


def test_what_waits_decides_only_when_the_folder_is_free(folder: Path) -> None:
    home = begun(folder)
    told, asked = threading.Event(), threading.Event()

    def wanted() -> Extension:
        assert locks.holder_of(home.output.lock) is not None
        asked.set()
        return one_more(folder)

    waiting = threading.Thread(target=lambda: extend(home, wanted, wait=True, tell=lambda _: told.set()))
    with locks.hold(home.output.lock, "another", "the folder"):
        waiting.start()
        assert told.wait(60)
        assert not asked.is_set()
    waiting.join(60)
    assert [event.name for event in extensions(home)] == ["c"]


def test_a_campaign_that_is_not_finished_is_not_extended(folder: Path) -> None:
    home = begun(folder, "--fault", "error@2:0@train-2")
    with pytest.raises(ConfigurationError, match="is not finished"):
        extend(home, lambda: one_more(folder))
    assert multi_run(folder, "--append", "c.jsonl")[0] == 1
    assert extensions(home) == []


def test_a_campaign_that_was_just_extended_is_busy(folder: Path) -> None:
    """Between the new run's line and its supervisor's lock the folder is free."""
    home = begun(folder)
    extend(home, lambda: one_more(folder))
    with pytest.raises(BusyError, match="about to begin"):
        extend(home, lambda: one_more(folder))
    assert len(extensions(home)) == 1


def test_the_same_file_is_not_appended_twice_until_it_changes(folder: Path) -> None:
    home = begun(folder)
    assert multi_run(folder, "--append", "c.jsonl")[0] == 0
    code, said = multi_run(folder, "--append", "c.jsonl")
    assert code == 1
    assert "was appended before, as run 3 (c), and is the same since" in said
    assert len(extensions(home)) == 1

    with (folder / "c.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    code, said = multi_run(folder, "--append", "c.jsonl")
    assert code == 0, said
    assert "run 3 is replayed no more" in said
    assert [event.data.samples for event in extensions(home)] == [40, 41]


def test_an_earlier_file_that_changed_is_neither_replayed_nor_scored(folder: Path) -> None:
    home = begun(folder)
    rows = (folder / "a.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(reversed(rows)))
    code, said = multi_run(folder, "--append", "c.jsonl")

    assert code == 0, said
    assert "run 1 is replayed no more: " in said
    assert [Path(portion.source).name for portion in extensions(home)[0].data.replay] == ["b.jsonl"]
    events = list(journal.read(home.events))
    assert {score.task for score in [e for e in events if isinstance(e, LinkScored)][-1].scores} == {1, 2}
    warned = [event.text for event in events if isinstance(event, Noticed)]
    assert len([text for text in warned if "a.jsonl is not what it was when run 1 (a) was trained on it" in text]) == 1


def test_a_file_that_changes_before_the_rest_is_resumed_is_left_out_of_it(folder: Path) -> None:
    home = begun(folder, "--fault", "error@1:0@combine-001")
    home.spec.write_text(json.dumps({**json.loads(home.spec.read_text()), "faults": []}))
    (folder / "a.jsonl").write_text("".join(f'{{"text": "another {i}"}}\n' for i in range(60)))
    code, said = multi_run(folder, "--resume", home.run_id)

    assert code == 0, said
    events = list(journal.read(home.events))
    assert {score.task for score in [e for e in events if isinstance(e, LinkScored)][-1].scores} == {1}
    link = next(row for row in history.list_rows(home.output) if row.link == 2)
    assert runs.load_spec(home.output.run(link.run_id)).data.replay == ()
