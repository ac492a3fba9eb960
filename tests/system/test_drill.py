"""`backprop drill`: its rows hold here, what does not hold is told, and nothing of the user's is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate.drive.drill import Drill, drilled
from backpropagate.drive.drill_rows import Row, toy_rows
from backpropagate.keep import userstate
from backpropagate_protocol.errors import DiskFullError
from backpropagate_protocol.spec import ModelSpec, PlannedFault
from tests.conftest import Oracle

pytestmark = pytest.mark.slow


def test_the_quick_rows_hold_and_leave_nothing_behind(tmp_path: Path) -> None:
    places = {"XDG_STATE_HOME": "state", "LOCALAPPDATA": "state", "HOME": "home", "TMPDIR": "temp", "TEMP": "temp"}
    for name in set(places.values()):
        (tmp_path / name).mkdir()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "drill", "--quick", "--json"],
        cwd=tmp_path / "home",
        env={**os.environ, **{variable: str(tmp_path / name) for variable, name in places.items()}},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    told = json.loads(done.stdout)
    assert [row["wrong"] for row in told["rows"] if not row["holds"]] == []
    assert (done.returncode, told["holds"], told["kept"]) == (0, True, None)
    assert {"oom", "sigkill", "hang", "torn_save", "killed_supervisor"} <= {row["key"] for row in told["rows"]}
    assert all(row["samples_exact"] and row["orphans"] == 0 for row in told["rows"])
    assert all(row["noticed"] is not None and row["recovered"] > row["noticed"] for row in told["rows"])
    assert {row["weights_identical"] for row in told["rows"] if row["key"] != "oom"} == {True}
    assert [path for name in set(places.values()) for path in (tmp_path / name).iterdir()] == []


def test_a_row_that_ends_otherwise_does_not_hold_and_on_a_full_disk_nothing_is_judged(oracle: Oracle) -> None:
    drill = Drill(oracle.home / "drill", ModelSpec(name="toy", path="toy"), "toy")
    wrong = Row("wrong", "killed", (PlannedFault("sigkill", 12),), code="RUNTIME_HANG")
    said: list[str] = []
    with pytest.raises(DiskFullError):
        next(drilled(drill, [wrong], said.append, lambda: DiskFullError("full")))
    assert said == []
    result = drill.drill(wrong)
    assert not result.holds
    assert result.wrong == ("RUNTIME_HANG was to be seen, and RUNTIME_CHILD_DIED was",)
    assert (result.ended, result.samples_exact, result.weights_identical, result.orphans) == (
        "completed",
        True,
        True,
        0,
    )


def test_a_card_that_was_only_played_ends_its_run_and_leaves_nothing_in_the_users_state(oracle: Oracle) -> None:
    drill = Drill(oracle.home / "drill", ModelSpec(name="toy", path="toy"), "toy")
    drill.undisturbed()
    rows = {row.key: row for row in toy_rows(quick=False)}
    userstate.remember("a card of the user's|toy", 4)
    for key in ("hot", "off_the_bus"):
        assert drill.drill(rows[key]).wrong == ()
    assert [path.name for path in userstate.state_dir().iterdir()] == ["fitted.json"]
    assert userstate.fitted("a card of the user's|toy") == 4
