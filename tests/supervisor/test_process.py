"""The door to processes, against runners that misbehave: each is a real process with a body written in the test."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from backpropagate.doors import process
from backpropagate.doors.process import Runner
from backpropagate.judge.decisions import Death
from backpropagate_protocol.framing import ProtocolError
from backpropagate_protocol.messages import Hello, Save, Stop
from tests.system.supervised import is_gone
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="an interpreter made of a script needs a shebang")


def interpreter(tmp_path: Path, body: str) -> str:
    """An 'interpreter' that ignores its arguments and does `body`."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable} -P\nimport os, sys, time\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def with_runner(python: str | None, deed: Callable[[Runner], Awaitable[None]], warm: str = "none") -> None:
    async def main() -> None:
        log = os.open(os.devnull, os.O_WRONLY)
        try:
            with anyio.fail_after(60):
                async with process.running(python, "a-run", warm, log) as runner:
                    await deed(runner)
        finally:
            os.close(log)

    anyio.run(main)


async def burial(runner: Runner) -> Death:
    drained = anyio.Event()
    drained.set()
    return await runner.wait(drained)


def test_the_real_runner_says_hello_and_is_gone_after_the_block() -> None:
    pids: list[int] = []

    async def deed(runner: Runner) -> None:
        async for message in runner.messages():
            assert isinstance(message, Hello)
            assert message.pid == runner.pid
            break
        pids.append(runner.pid)

    with_runner(None, deed)
    assert is_gone(pids[0])


def test_what_a_runner_started_dies_with_it(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    body = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(note) + ".part"!r}, "w").write(str(child.pid))
os.rename({str(note) + ".part"!r}, {str(note)!r})
time.sleep(600)
"""

    async def deed(runner: Runner) -> None:
        while not note.exists():
            await anyio.sleep(0.01)
        runner.kill()
        assert (await burial(runner)).text == "was killed by SIGKILL"
        assert is_gone(int(note.read_text()))

    with_runner(interpreter(tmp_path, body), deed)


def test_what_a_runner_left_behind_when_it_ended_by_itself_is_ended_too(tmp_path: Path) -> None:
    note = tmp_path / "grandchild"
    body = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(note)!r}, "w").write(str(child.pid))
"""

    async def deed(runner: Runner) -> None:
        assert (await burial(runner)).code == 0
        assert is_gone(int(note.read_text()))

    with_runner(interpreter(tmp_path, body), deed)


def test_a_runner_that_reads_nothing_blocks_nobody(tmp_path: Path) -> None:
    async def deed(runner: Runner) -> None:
        for _ in range(1000):
            runner.send(Stop("x" * 10_000))
        runner.kill()
        await burial(runner)
        runner.send(Save())

    with_runner(interpreter(tmp_path, "time.sleep(600)"), deed)


def test_a_runner_that_is_blocked_in_a_full_pipe_can_be_left(tmp_path: Path) -> None:
    async def deed(runner: Runner) -> None:
        await anyio.sleep(0)

    with_runner(interpreter(tmp_path, "while True: os.write(1, bytes(100_000))"), deed)


def test_what_is_not_the_protocol_is_told_at_once(tmp_path: Path) -> None:
    async def deed(runner: Runner) -> None:
        with pytest.raises(ProtocolError, match="no message of ours"):
            async for _ in runner.messages():
                pass

    with_runner(interpreter(tmp_path, "os.write(1, bytes([1, 0, 0, 0, 7])); time.sleep(600)"), deed)


def test_all_that_was_said_before_a_death_is_heard(tmp_path: Path) -> None:
    body = """
from backpropagate_protocol.framing import encode
from backpropagate_protocol.messages import Notice
for number in range(2000):
    os.write(1, encode(Notice("info", str(number))))
os.kill(os.getpid(), 9)
"""
    heard: list[object] = []

    async def deed(runner: Runner) -> None:
        drained = anyio.Event()

        async def listen() -> None:
            async for message in runner.messages():
                heard.append(message)
            drained.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await runner.wait(drained)

    with_runner(interpreter(tmp_path, body), deed)
    assert len(heard) == 2000


def test_a_runner_sees_none_of_our_settings_and_one_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKPROPAGATE_TRAINING__LEARNING_RATE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    note = tmp_path / "environment"
    body = f"import json; json.dump(dict(os.environ), open({str(note)!r}, 'w'))"

    async def deed(runner: Runner) -> None:
        await burial(runner)

    with_runner(interpreter(tmp_path, body), deed)
    import json

    seen = json.loads(note.read_text())
    assert {name for name in seen if name.startswith("BACKPROPAGATE_")} == {process.RUN_ID_VARIABLE}
    assert seen[process.RUN_ID_VARIABLE] == "a-run"
    assert seen["CUDA_VISIBLE_DEVICES"] == "2"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert seen["HF_HUB_DISABLE_TELEMETRY"] == "1"


_CTRL_C = """
import anyio, os, signal, sys
from anyio.streams.buffered import BufferedByteReceiveStream
from backpropagate.doors import line_helper, process
signal.signal(signal.SIGINT, lambda number, frame: None)  # what is ignored would be ignored by the helper, too
wish = ["-c", "import sys; print('ready', flush=True); print(sys.stdin.readline().strip(), flush=True)"]

async def main():
    async with line_helper.helper(wish) as helper:
        lines = BufferedByteReceiveStream(helper.stdout)
        await lines.receive_until(b"\\n", 100)
        os.killpg(0, signal.SIGINT)
        await helper.stdin.send(b"alive\\n")
        print((await lines.receive_until(b"\\n", 100)).decode())

anyio.run(main)
"""


def test_a_ctrl_c_in_the_terminal_does_not_end_the_sensors_helper() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _CTRL_C], capture_output=True, start_new_session=True, text=True)
    assert done.stdout.strip() == "alive", done.stderr


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    async def deed(runner: Runner) -> None:
        raise AssertionError("it cannot have been started")

    with pytest.raises(OSError, match="no-such"):
        with_runner(str(tmp_path / "no-such"), deed)


_SIGNALS = """
import os, signal
from backpropagate.doors import process
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have had it ignored
heard = []
with process.signals(heard.append):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(os.getpid(), number)
print(heard, signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)
"""


def test_signals_become_words_and_the_old_handlers_come_back() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _SIGNALS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['sigterm', 'ctrl-c'] True"


def test_a_hung_runner_that_was_stopped_wakes_to_dump_its_stacks(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
        try:
            async with process.running(None, "a-run", "none", descriptor) as runner:
                async for _ in runner.messages():
                    break
                os.kill(runner.pid, signal.Signals["SIGSTOP"])
                runner.dump_stacks()
                assert (await burial(runner)).text == "was killed by SIGABRT"
        finally:
            os.close(descriptor)

    anyio.run(main)
    eventually(lambda: "Fatal Python error: Aborted" in log.read_text(), "the stacks are in the log")
