"""MLX under supervision, from rows to an answer in llama.cpp: killed, short of memory, and halved on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import msgspec
import pytest

from backpropagate.events import AttemptStarted, ExportProved, FaultSeen, ModelReady
from backpropagate_protocol.mlx_rules import ALLOW_CPU
from backpropagate_protocol.rundir import OutputDir
from backpropagate_protocol.spec import ExportSpec, LoraSpec, ModelSpec
from tests.house.source import ROOT
from tests.system.supervised import Story, run_here, toy_spec

pytest.importorskip("mlx_lm")

pytestmark = pytest.mark.slow

QUESTION, ANSWER = "What is the capital of France?", "Paris."
STEPS = 40


@dataclass(frozen=True)
class Taught:
    """A run that had a bad time, and its export."""

    output: OutputDir
    run_id: str
    story: Story
    exit_code: int


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Taught:
    """Killed before step 6; in the next attempt, before step 12, it ends as MLX's CPU build does when memory runs out."""
    home = tmp_path_factory.mktemp("mlx")
    rows = home / "rows.jsonl"
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    other = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "I am a small parrot."}]
    rows.write_text("".join(json.dumps({"messages": each}) + "\n" for each in (turns, other)))
    output = OutputDir(home / "output")
    spec = toy_spec(output, "sigkill:6", "segfault:12:2", steps=STEPS, hang_floor=120.0)
    train = msgspec.structs.replace(spec.train, effective_batch=2, learning_rate=5e-3)
    spec = msgspec.structs.replace(
        spec,
        backend="mlx",
        model=ModelSpec(name="tiny", path=str(ROOT / "fixtures" / "tiny-base")),
        lora=LoraSpec(r=32, alpha=64),
        train=train,
        export=ExportSpec(format="gguf", quantization="q8_0", destination=str(home / "made"), name="parrot"),
    )
    outcome, story = run_here(spec)
    return Taught(output, spec.run_id, story, int(outcome.exit_code))


def _backprop(taught: Taught, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=taught.output.path.parent,
        env={**os.environ, ALLOW_CPU: "1", "PYTHONUTF8": "1"},
        check=False,
        timeout=280,
    )


def test_it_survives_a_kill_and_halves_where_memory_ran_out(taught: Taught) -> None:
    assert taught.exit_code == 0
    story = taught.story
    assert [(m.micro_batch, m.accumulation, m.resume_step) for m in story.of(AttemptStarted)] == [
        (2, 1, 0),
        (2, 1, 5),
        (1, 2, 10),
    ]
    assert {ready.device for ready in story.of(ModelReady)} & {"mlx-cpu"} or sys.platform == "darwin"
    faults = [fault.kind for fault in story.of(FaultSeen)]
    assert faults == ["died", "oom"] or sys.platform == "darwin"


def test_its_gguf_is_proved_and_gives_the_trained_answer_in_llama_cpp(taught: Taught) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    (proof,) = taught.story.of(ExportProved)
    assert proof.passed
    (made,) = (taught.output.path.parent / "made").glob("*.gguf")
    model = llama_cpp.Llama(str(made), n_ctx=256, n_threads=1, verbose=False)
    asked = [{"role": "user", "content": QUESTION}]
    said = model.create_chat_completion(asked, max_tokens=20, temperature=0.0)
    assert said["choices"][0]["message"]["content"].strip() == ANSWER


def test_it_answers_in_mlx_and_its_export_to_mlx_does_so_in_transformers(taught: Taught) -> None:
    asked = _backprop(taught, "generate", taught.run_id, QUESTION, "-o", "output")
    assert ANSWER in asked.stdout, asked.stdout + asked.stderr
    made = _backprop(taught, "export", taught.run_id, "--format", "mlx", "--runs", "output", "-o", "mlx")
    assert made.returncode == 0, made.stdout + made.stderr
    assert "proof    passed" in made.stdout + made.stderr
    (folder,) = (path for path in (taught.output.path.parent / "mlx").iterdir() if path.is_dir())
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    turns = [{"role": "user", "content": QUESTION}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=20, do_sample=False)
    text = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text.strip() == ANSWER


def test_what_mlx_cannot_do_is_refused_before_anything_starts(taught: Taught) -> None:
    train = ("train", "--data", "rows.jsonl", "--model", "tiny", "--backend", "mlx", "-o", "refused")
    for wish in (("--fp8",), ("--mode", "full"), ("--optim", "lion_8bit"), ("--dtype", "fp16"), ("--packing",)):
        done = _backprop(taught, *train, *wish)
        assert done.returncode == 1, done.stdout
        assert "CONFIG_INVALID_SETTING" in done.stdout + done.stderr
    assert not (taught.output.path.parent / "refused").exists()
