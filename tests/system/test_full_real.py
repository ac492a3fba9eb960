"""A full fine-tune under a real supervisor: killed and out of memory on the way, exported, asked, and shown to the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backpropagate.events import AttemptStarted, Exported, FaultSeen
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import ExportSpec, LoraSpec
from tests.conftest import Oracle
from tests.system.real import Trained, real_spec
from tests.system.supervised import run_here

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def backprop(*arguments: str, cwd: Path) -> dict[str, object]:
    """One command as a user types it; its JSON."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "PYTHONUTF8": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_a_whole_model_is_trained_through_faults_and_goes_wherever_an_adapter_goes(
    oracle: Oracle, untroubled: Trained
) -> None:
    output = oracle.output()
    spec = real_spec(output, "sigkill:6", "oom:10:2", learning_rate=1e-3)
    spec = msgspec.structs.replace(
        spec,
        lora=LoraSpec(),
        train=msgspec.structs.replace(spec.train, mode="full"),
        export=ExportSpec(format="gguf", quantization="q8_0", destination=str(output.exports), name="whole"),
    )
    outcome, story = run_here(spec)

    # Exact: the samples are those of the adapter's run that nothing disturbed.
    assert (outcome.status, outcome.exit_code) == ("completed", 0), outcome
    assert [(each.resume_step, each.micro_batch) for each in story.of(AttemptStarted)] == [(0, 4), (4, 4), (8, 2)]
    assert [fault.kind for fault in story.of(FaultSeen)] == ["died", "oom"]
    assert (outcome.step, outcome.samples_seen) == (untroubled.outcome.step, untroubled.outcome.samples_seen)
    assert outcome.order == untroubled.outcome.order

    # One place only, and what was exported was proved to answer as it does.
    run_dir = OutputDir(Path(spec.output)).run(spec.run_id)
    assert (run_dir.adapter / "model.safetensors").is_file()
    assert not output.lora.exists()
    assert Path(story.of(Exported)[0].path).name == "whole-Q8_0.gguf"

    trained, base = (
        backprop(
            "generate", spec.run_id, "how many 3?", *how, "-o", "out", "--max-new-tokens", "8", cwd=output.path.parent
        )
        for how in ([], ["--base"])
    )
    assert trained["answers"] != base["answers"]
    assert (trained["adapter"], base["adapter"]) == (str(run_dir.adapter), None)

    shown = backprop("push", spec.run_id, "--repo", "me/whole", "--dry-run", "--runs", "out", cwd=output.path.parent)
    assert "model.safetensors" in json.dumps(shown)
