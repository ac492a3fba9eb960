"""Campaigns with their runs below them, whatever came between, and whatever is gone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate.keep import history, runs
from backpropagate.keep.record import RunRow
from backpropagate.keep.tree import tree
from backpropagate_protocol import durable
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import DataSpec, ModelSpec, RunSpec


@pytest.fixture
def output(tmp_path: Path) -> OutputDir:
    """A campaign c of the runs c1 and c2, a training t, and then c3, which was appended to c."""
    output = OutputDir(tmp_path / "out")
    below: list[dict[str, object]] = [{"link": number, "run_id": f"c{number}"} for number in (1, 2, 3)]
    rows = [RunRow(run_id="c", status="completed", session_kind="multi_run", runs=below)]
    rows += [RunRow(run_id=f"c{number}", status="completed", parent="c", link=number) for number in (1, 2)]
    rows += [RunRow(run_id="t", status="completed"), RunRow(run_id="c3", status="failed", parent="c", link=3)]
    for row in rows:
        made = runs.create(
            RunSpec(
                run_id=row.run_id,
                created="",
                output=str(output.path),
                model=ModelSpec(name="m", path="m"),
                data=DataSpec(source="d"),
                parent=row.parent,
                link=row.link,
            )
        )
        assert made.spec.is_file()
        made.events.write_bytes(b"a run that has begun\n")
        history.record(output, row)
    return output


def drawn(output: OutputDir, limit: int | None = None) -> list[str]:
    return [branch + row.run_id for row, branch in tree(output, limit)]


def test_a_campaign_stands_where_its_newest_run_would(output: OutputDir) -> None:
    assert drawn(output) == ["c", "├ c1", "├ c2", "└ c3", "t"]


def test_a_campaign_counts_as_one_and_comes_with_its_older_runs(output: OutputDir) -> None:
    """Of its row nothing is read before the limit is reached; the runs' directories are asked."""
    assert drawn(output, 2) == ["c", "├ c1", "├ c2", "└ c3", "t"]
    history.record(output, RunRow(run_id="u", status="completed"))
    assert drawn(output, 1) == ["u"]


def test_runs_whose_campaign_is_gone_stand_alone(output: OutputDir) -> None:
    durable.discard(output.run("c").path)
    lines = [line for line in output.history.read_bytes().splitlines(keepends=True) if b'"run_id":"c",' not in line]
    output.history.write_bytes(b"".join(lines))

    assert drawn(output) == ["c3", "c2", "c1", "t"]


def test_rows_of_the_same_group_are_counted_once(output: OutputDir) -> None:
    rows = history.list_rows(output, limit=1, counted_as=lambda row: row.parent or row.run_id)

    assert [row.run_id for row in rows] == ["c3"]
    assert [row.run_id for row in history.list_rows(output, limit=2)] == ["c3", "t"]
    assert msgspec.to_builtins(rows[0])["link"] == 3
