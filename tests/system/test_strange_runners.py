"""Runners that speak nonsense, stand still while they talk, or talk without end: replaced, and never a danger to the parent.

Each is a real process that misbehaves in the run's first attempt and is the real runner afterwards.
"""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate.events import FaultSeen
from backpropagate.outcome import Outcome
from tests.conftest import Oracle
from tests.system.supervised import run_here, toy_spec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="an interpreter made of a script needs a shebang"),
]

_STRANGE = """#!{python} -P
import os, sys, time
from pathlib import Path
from backpropagate_protocol import messages as m
from backpropagate_protocol.framing import encode
from backpropagate_protocol.lifeline import die_with_parent

def say(message):
    os.write(1, encode(message))

first = Path(__file__ + ".first")
if not first.exists():
    first.touch()
    die_with_parent(int(sys.argv[sys.argv.index("--parent") + 1]))
{body}
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_HELLO = 'say(m.Hello(m.PROTOCOL_VERSION, os.getpid(), "3", {}))'


def strange(folder: Path, *body: str) -> str:
    """An interpreter that does `body` when it is started first, and is Python afterwards."""
    path = folder / "python"
    path.write_text(_STRANGE.format(python=sys.executable, body="\n".join(f"    {line}" for line in body)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (['os.write(1, b"\\xff\\xff\\xff\\xff" + bytes(100))', "time.sleep(600)"], "protocol"),
        (['os.write(1, (50).to_bytes(4, "little") + b"half")', "os._exit(0)"], "died"),
        (['os.write(1, b"\\x09\\0\\0\\0\\x91\\xa7unheard")', "time.sleep(600)"], "protocol"),
        (["os.write(1, bytes(4))", "time.sleep(600)"], "protocol"),
        (["os.close(1)", "time.sleep(600)"], "protocol"),
    ],
    ids=["four gibibytes", "a frame cut short", "an unknown message", "an empty frame", "a pipe that was closed"],
)
def test_a_runner_that_speaks_nonsense_is_replaced(
    oracle: Oracle, undisturbed: Outcome, body: list[str], kind: str
) -> None:
    spec = toy_spec(oracle.output())
    outcome, story = run_here(msgspec.structs.replace(spec, runner_python=strange(oracle.home, _HELLO, *body)))
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 1)
    assert [fault.kind for fault in story.of(FaultSeen)] == [kind]


def test_a_runner_of_another_version_is_refused_and_not_tried_again(oracle: Oracle) -> None:
    body = ['say(m.Hello(99, os.getpid(), "3", {}))', "time.sleep(600)"]
    spec = msgspec.structs.replace(toy_spec(oracle.output()), runner_python=strange(oracle.home, *body))
    outcome, _ = run_here(spec)
    assert (outcome.status, outcome.code, outcome.recoveries) == ("failed", "RUNTIME_PROTOCOL", 0)


def test_a_runner_that_reports_the_same_step_for_ever_makes_no_progress(oracle: Oracle, undisturbed: Outcome) -> None:
    """It lives, it talks, and it gets nowhere: what counts is the step."""
    body = [
        _HELLO,
        "os.read(0, 1 << 20)",
        'say(m.Started("toy", "toy", 0, 30, 0, 8, 1, 1, 1, "fp64"))',
        "while True:",
        "    say(m.Progress(1, 30, 8, 1, 0.5, step_seconds=0.001))",
        "    time.sleep(0.01)",
    ]
    spec = toy_spec(oracle.output(), hang_floor=1.0)
    outcome, story = run_here(msgspec.structs.replace(spec, runner_python=strange(oracle.home, *body)))
    assert {fault.code for fault in story.of(FaultSeen)} == {"RUNTIME_HANG"}  # on a starved machine, more than once
    assert (outcome.status, outcome.order) == ("completed", undisturbed.order)


def test_a_line_without_end_and_control_characters_go_to_the_log_and_nowhere_else(
    oracle: Oracle, undisturbed: Outcome
) -> None:
    """32 MiB on standard error, with NULs and escapes, before the first word of the protocol."""
    body = ['os.write(2, b"\\x00\\x1b[2J" + b"x" * 1024)', "for _ in range(32): os.write(2, bytes(1 << 20))"]  # fmt: skip
    spec = toy_spec(oracle.output())
    outcome, story = run_here(msgspec.structs.replace(spec, runner_python=strange(oracle.home, *body)))
    assert (outcome.status, outcome.order, outcome.recoveries) == ("completed", undisturbed.order, 0)
    assert not story.of(FaultSeen)
    assert oracle.output().run(spec.run_id).log.stat().st_size > 32 << 20
