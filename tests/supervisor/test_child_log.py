"""Whose words stand in the logs: a child's own, wherever it wrote them."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

from backpropagate.drive.child_log import child_log, waiting_log

MARK = b"\n[990 bytes were dropped here: the log had grown too long]\n"


def test_what_one_that_waits_writes_is_not_taken_for_the_words_of_the_one_that_works(tmp_path: Path) -> None:
    log, apart = tmp_path / "runner.log", tmp_path / "standby.log"
    log.write_text("of an earlier child\n")
    with child_log(log) as works:
        works.begin()
        with waiting_log(apart, log) as waits:
            os.write(waits.descriptor, b"imported\n")
            os.write(works.descriptor, b"step 7\n")
            assert works.last_words() == "step 7\n"

            waits.begin()  # its turn has come
            os.write(waits.descriptor, b"still importing\n")
            with log.open("a") as after_its_job:
                after_its_job.write("step 8\n")
            assert waits.last_words() == "still importing\nstep 8\n"
    with waiting_log(apart, log):
        assert apart.read_text() == ""


def test_one_that_waits_writes_into_a_file_of_its_own_after_another_that_waited_there_works(tmp_path: Path) -> None:
    log, apart = tmp_path / "runner.log", tmp_path / "standby.log"
    with waiting_log(apart, log) as works:
        os.write(works.descriptor, b"imported\n")
        works.begin()
        log.write_text("step 7\n")
        with waiting_log(apart, log) as waits:
            os.write(waits.descriptor, b"Fatal Python error: of the one that waits\n" * 20)
            assert works.last_words() == "step 7\n"
            works.bound(limit=500, head=100, tail=200)
            assert "dropped" not in waits.last_words()


def test_a_disk_that_gives_no_log_does_not_keep_a_child_from_working(tmp_path: Path) -> None:
    with child_log(tmp_path / "no-folder" / "runner.log") as works:
        works.begin()
        os.write(works.descriptor, b"lost")
        assert works.last_words() == ""


def test_a_log_that_grew_too_long_keeps_its_beginning_and_its_end_and_says_what_went(tmp_path: Path) -> None:
    log = tmp_path / "runner.log"
    with child_log(log) as works:
        for dropped in (990, 990 + 1020 + len(MARK)):
            os.write(works.descriptor, b"H" * 10 + b"x" * 990 + b"T" * 20)
            works.bound(limit=500, head=10, tail=20)
            said = log.read_bytes()
            assert said.startswith(b"H" * 10 + b"\n[")
            assert said.endswith(b"]\n" + b"T" * 20)
            assert b"[%d bytes were dropped here" % dropped in said
        os.write(works.descriptor, b"and on\n")
        assert log.read_bytes().endswith(b"]\n" + b"T" * 20 + b"and on\n")
        assert log.read_bytes().count(b"dropped") == 1


def test_last_words_are_a_childs_own_after_the_middle_was_dropped(tmp_path: Path) -> None:
    log = tmp_path / "runner.log"
    log.write_bytes(b"of an earlier child\n" * 50)
    with child_log(log) as works:
        works.begin()
        os.write(works.descriptor, b"mine\n")
        works.bound(limit=500, head=100, tail=200)
        os.write(works.descriptor, b"stacks\n")
        assert works.last_words() == "mine\nstacks\n"
        assert log.stat().st_size < 500


def test_one_that_waits_does_not_cut_the_log_of_the_one_that_works(tmp_path: Path) -> None:
    log, apart = tmp_path / "runner.log", tmp_path / "standby.log"
    log.write_bytes(b"x" * 1000)
    with waiting_log(apart, log) as waits:
        os.write(waits.descriptor, b"y" * 1000)
        waits.bound(limit=500, head=100, tail=200)
        assert log.stat().st_size == 1000
        assert apart.stat().st_size < 500
        waits.begin()
        waits.bound(limit=500, head=100, tail=200)
        assert log.stat().st_size < 500


def test_one_who_appends_meanwhile_goes_on_where_the_log_ends(tmp_path: Path) -> None:
    log = tmp_path / "runner.log"
    lines = 20_000
    with child_log(log) as works:

        def write() -> None:
            for line in range(lines):
                os.write(works.descriptor, b"line %06d\n" % line)

        writer = Thread(target=write)
        writer.start()
        while writer.is_alive():
            works.bound(limit=50_000, head=1_000, tail=5_000)
        writer.join()
        works.bound(limit=50_000, head=1_000, tail=5_000)
        said = log.read_bytes()
    assert len(said) <= 50_000
    assert b"\0" not in said
    assert said.startswith(b"line 000000\n")
    assert said.endswith(b"\n")
    assert said.count(b"dropped") == 1
