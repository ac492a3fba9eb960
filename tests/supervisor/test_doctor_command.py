"""`doctor`: what is tried is tried in a child; a child that hangs or cannot be started is told of, and what works remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from backpropagate.doors.oneshot import run_job
from backpropagate.keep import probed
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import ProbeJob
from backpropagate_protocol.probes import MISSING, NAMES, WORKS, ProbeReport


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", "doctor", *arguments],
        cwd=folder,
        env={**os.environ, "XDG_STATE_HOME": str(folder / "state"), "LOCALAPPDATA": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_a_probe_says_what_works_and_what_is_missing(tmp_path: Path) -> None:
    done = doctor(tmp_path, "bitsandbytes", "liger", "--json")
    assert done.returncode == 0, done.stderr
    found, liger = json.loads(done.stdout)["probes"]
    assert found["state"] == (WORKS if find_spec("bitsandbytes") else MISSING), found
    assert liger["state"] in (WORKS, MISSING)
    assert not (tmp_path / "state").exists()  # only a whole examination is remembered


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["packag"], "INPUT_VALIDATION_FAILED"), (["--runner-python", "nobody"], "CONFIG_INVALID_SETTING")],
)
def test_a_wrong_wish_is_refused(tmp_path: Path, arguments: list[str], code: str) -> None:
    done = doctor(tmp_path, *arguments)
    assert done.returncode == 1
    assert f"[{code}]: " in done.stderr


def test_a_probe_that_hangs_is_ended_at_its_deadline() -> None:
    with pytest.raises(BackpropagateError, match="did not answer") as caught:
        run_job(ProbeJob(name="packages"), ProbeReport, backend="none", deadline=0.01)
    assert caught.value.code == "RUNTIME_CHILD_DIED"


def test_there_is_a_try_for_every_probe() -> None:
    pytest.importorskip("trl")
    from backpropagate_backends.torch_probe import TRIES

    assert set(TRIES) == set(NAMES)


def test_what_works_is_remembered_for_this_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    if sys.platform == "darwin":
        pytest.skip("the state of a user has no variable here")
    packages = {"torch": "2.13.0", "backpropagate": "1.0"}
    assert probed.known(None, packages, "A100") is None
    probed.remember(None, packages, "A100", ["card", "liger"])
    assert probed.known(None, packages | {"backpropagate": "1.1"}, "A100") == ("card", "liger")
    assert probed.known(None, packages | {"torch": "2.14.0"}, "A100") is None
    assert probed.known(None, packages, "T4") is None
    assert probed.known("/other/python", packages, "A100") is None
