"""A log's end, parted into what was said and where every thread stood."""

from __future__ import annotations

import faulthandler
import tempfile

from backpropagate.judge.last_words import LINES, part
from backpropagate_protocol.landmarks import IMPORTED


def test_a_real_dump_is_parted_from_what_was_said_before_it() -> None:
    with tempfile.TemporaryFile("w+") as log:
        log.write("loading\n\nstep 7\n")
        log.flush()
        faulthandler.dump_traceback(log, all_threads=True)
        log.seek(0)
        words = part(log.read())
    assert words.lines == ("loading", "step 7")
    assert "test_a_real_dump_is_parted" in words.stacks


def test_the_thread_that_was_at_work_comes_first() -> None:
    dump = (
        "Fatal Python error: Segmentation fault\n\n"
        'Thread 0x00000001 (most recent call first):\n  File "a.py", line 1 in wait\n\n'
        'Current thread 0x00000002 (most recent call first):\n  File "b.py", line 2 in forward\n\n'
        "Extension modules: numpy, torch (total: 2)\n"
    )
    assert part("step 7\n" + dump).stacks.split("\n") == [
        "Fatal Python error: Segmentation fault",
        "",
        "Current thread 0x00000002 (most recent call first):",
        '  File "b.py", line 2 in forward',
        "Thread 0x00000001 (most recent call first):",
        '  File "a.py", line 1 in wait',
    ]


def test_a_line_that_only_speaks_of_a_thread_is_no_dump() -> None:
    words = part("Thread 0x00 here is a library's chatter\nRuntimeError: boom\n")
    assert (words.lines, words.stacks) == (("Thread 0x00 here is a library's chatter", "RuntimeError: boom"), "")


def test_of_a_talkative_child_only_the_newest_lines_are_kept() -> None:
    words = part("\n".join(f"line {i}" for i in range(500)))
    assert (len(words.lines), words.lines[-1], words.stacks) == (LINES, "line 499", "")


def test_a_dump_of_endless_depth_keeps_both_ends() -> None:
    stacks = part(
        "\n".join(["Fatal Python error: x", *(f'  File "deep.py", line {i} in f' for i in range(5000))])
    ).stacks
    lines = stacks.split("\n")
    assert len(lines) == 301
    assert lines[150] == "… 4701 more lines in the log …"
    assert lines[-1].endswith("line 4999 in f")


def test_nothing_said_is_nothing() -> None:
    assert part("") == part("\n\n")
    assert not part("").lines


def test_what_libraries_warned_of_in_its_imports_is_not_what_a_child_died_of() -> None:
    words = part(f"Skipping import of cpp extensions\n{IMPORTED}\nstep 7\nFatal Python error: Aborted\n")
    assert (words.lines, words.earlier) == (("step 7",), ("Skipping import of cpp extensions",))
    assert words.stacks == "Fatal Python error: Aborted"
    silent = part(f"Skipping import of cpp extensions\n{IMPORTED}\n")
    assert (silent.lines, silent.earlier) == ((), words.earlier)


def test_of_a_child_that_died_in_its_imports_all_words_are_the_last() -> None:
    words = part("Skipping import of cpp extensions\nImportError: no torch\n")
    assert (len(words.lines), words.earlier) == (2, ())
