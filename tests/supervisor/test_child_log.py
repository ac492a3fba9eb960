"""Whose words stand in the logs: a child's own, wherever it wrote them."""

from __future__ import annotations

import os
from pathlib import Path

from backpropagate.drive.child_log import child_log, waiting_log


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


def test_a_disk_that_gives_no_log_does_not_keep_a_child_from_working(tmp_path: Path) -> None:
    with child_log(tmp_path / "no-folder" / "runner.log") as works:
        works.begin()
        os.write(works.descriptor, b"lost")
        assert works.last_words() == ""
