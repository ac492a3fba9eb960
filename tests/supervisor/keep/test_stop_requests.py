"""Requests to stop: heard once, by the supervisor that is meant, and by no other."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from backpropagate.keep import history, locks, runs, stop_requests
from backpropagate.keep.locks import Holder
from backpropagate.keep.stop_requests import AT_ONCE, SAVING, StopRequest
from backpropagate_protocol.errors import RunNotFoundError
from backpropagate_protocol.rundir import OutputDir, RunDir
from backpropagate_protocol.spec import RunSpec
from tests.system.supervised import toy_spec

ME = Holder(pid=7, run_id="r", since="2026-01-01T00:00:00Z")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    home = OutputDir(tmp_path / "out").run("r")
    home.path.mkdir(parents=True)
    return home


def left(run_dir: RunDir) -> list[str]:
    return sorted(path.name for path in run_dir.path.iterdir())


@pytest.mark.parametrize(("now", "wish"), [(False, SAVING), (True, AT_ONCE)])
def test_a_request_is_heard_once_and_leaves_nothing(run_dir: RunDir, now: bool, wish: str) -> None:
    assert stop_requests.take(run_dir, ME) is None
    stop_requests.ask(run_dir, StopRequest(holder=ME, now=now))
    assert not stop_requests.is_heard(run_dir)
    assert [stop_requests.take(run_dir, ME) for _ in range(2)] == [wish, None]
    assert stop_requests.is_heard(run_dir)
    assert left(run_dir) == []


@pytest.mark.parametrize(
    "other",
    [
        msgspec.structs.replace(ME, pid=8),
        msgspec.structs.replace(ME, since="2026-01-01T00:00:01Z"),
        msgspec.structs.replace(ME, run_id="s"),
    ],
)
def test_a_request_to_another_supervisor_is_not_obeyed_and_does_not_stay(run_dir: RunDir, other: Holder) -> None:
    stop_requests.ask(run_dir, StopRequest(holder=other, now=True))
    assert stop_requests.take(run_dir, ME) is None
    assert left(run_dir) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"now":true}', b"\xff"])
def test_what_is_no_request_is_not_obeyed_and_does_not_stay(run_dir: RunDir, content: bytes) -> None:
    run_dir.stop_request.write_bytes(content)
    assert stop_requests.take(run_dir, ME) is None
    assert left(run_dir) == []


def test_what_a_crash_left_while_one_was_read_is_not_obeyed(run_dir: RunDir) -> None:
    run_dir.stop_request_taken.write_bytes(msgspec.json.encode(StopRequest(holder=ME)))
    assert stop_requests.take(run_dir, ME) is None


def test_only_ones_own_request_is_withdrawn(run_dir: RunDir) -> None:
    mine, others = StopRequest(holder=ME), StopRequest(holder=ME, now=True)
    stop_requests.withdraw(run_dir, mine)  # there is none
    stop_requests.ask(run_dir, others)
    stop_requests.withdraw(run_dir, mine)
    assert left(run_dir) == [run_dir.stop_request.name]
    stop_requests.withdraw(run_dir, others)
    assert left(run_dir) == []


def test_a_training_has_the_supervisor_that_holds_its_output_folder_and_an_export_that_of_its_own(
    tmp_path: Path,
) -> None:
    output = OutputDir(tmp_path / "out")
    training, other = toy_spec(output), toy_spec(output)
    export = msgspec.structs.replace(toy_spec(output), kind="export")
    homes = {spec.run_id: runs.create(spec) for spec in (training, other, export)}

    def supervisor_of(spec: RunSpec) -> Holder | None:
        return stop_requests.supervisor_of(homes[spec.run_id], spec)

    with locks.hold(output.lock, training.run_id, "the folder") as trains:
        with locks.hold(homes[export.run_id].lock, export.run_id, "the run") as exports:
            assert [supervisor_of(spec) for spec in (training, other, export)] == [trains, None, exports]
            assert history.to_stop(output, "latest").run_id == export.run_id
        assert history.to_stop(output, "latest").run_id == training.run_id  # not the newest, but the one that runs
    assert supervisor_of(training) is None
    assert history.to_stop(output, training.run_id[:8]).run_id == training.run_id
    with pytest.raises(RunNotFoundError):
        history.to_stop(output, "none")
