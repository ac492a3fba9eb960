"""From training to an answer: the tiny base is trained by the command line, exported in every way, and asked in llama.cpp."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from backpropagate.doors.oneshot import run_job
from backpropagate_protocol.jobs import ConvertJob, MergeJob
from backpropagate_protocol.messages import Hello, Made, ToParent
from backpropagate_protocol.spec import ModelSpec
from tests.house.source import ROOT

pytestmark = pytest.mark.slow

TINY = ROOT / "fixtures" / "tiny-base"
DATA = ROOT / "fixtures" / "quickstart.jsonl"
# Five conversations are learnt by heart: a high learning rate and many passes, which real data would not want.
_BY_HEART = ("--steps", "80", "--learning-rate", "3e-3", "--lora-r", "32", "--batch-size", "8", "--seed", "42")


def backprop(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """One command as a user types it."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "backpropagate", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **environment},
        check=False,
        timeout=280,
    )


Turns = list[dict[str, str]]

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


def lesson() -> list[tuple[Turns, str]]:
    """What is taught: the turns before the last answer of each conversation, and that answer."""
    rows = [json.loads(line)["conversations"] for line in DATA.read_text(encoding="utf-8").splitlines()]
    turns = [[{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in row] for row in rows]
    return [(row[:-1], row[-1]["content"]) for row in turns]


LESSON = lesson()
TAUGHT = [answer for _, answer in LESSON]


@dataclass(frozen=True)
class Trained:
    """A finished `backprop train --export q8_0`."""

    home: Path
    said: str

    @property
    def adapter(self) -> Path:
        return self.home / "out" / "lora"

    def exported(self, *how: str) -> Path:
        """What one more `backprop export` makes of it."""
        before = set((self.home / "made").glob("*"))
        done = backprop("export", "out/lora", *how, "--runs", "out", "-o", "made", cwd=self.home)
        assert done.returncode == 0, done.stdout + done.stderr
        (made,) = (p for p in set((self.home / "made").glob("*")) - before if p.suffix != ".json")
        return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("trained")
    done = backprop(
        "train", "--data", str(DATA), "--model", "tiny", *_BY_HEART, "--export", "q8_0", "-o", "out", cwd=home
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Trained(home, done.stdout + done.stderr)


_IN_LLAMA_CPP = """
import json, sys, llama_cpp
path, lora, prompts = json.loads(sys.argv[1])
model = llama_cpp.Llama(path, lora_path=lora, n_ctx=512, n_threads=1, verbose=False)
print(json.dumps([model(prompt, max_tokens=60, temperature=0.0)["choices"][0]["text"] for prompt in prompts]))
"""


def prompts(tokenizer_of: Path) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    return [
        str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) for turns, _ in LESSON
    ]


def answers_of_gguf(path: Path, tokenizer_of: Path, lora: Path | None = None) -> list[str]:
    """llama.cpp by its Python package, as anybody would use it: no code of ours between the file and the answer."""
    asked = json.dumps([str(path), str(lora) if lora else None, prompts(tokenizer_of)])
    done = subprocess.run(
        [sys.executable, "-c", _IN_LLAMA_CPP, asked], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def answers_of_folder(path: Path) -> list[str]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    found = []
    for prompt in prompts(path):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        made = model.generate(**ids, max_new_tokens=60, do_sample=False)
        found.append(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def test_the_base_does_not_know_the_answers() -> None:
    assert not set(answers_of_folder(TINY)) & set(TAUGHT)


def test_a_q8_0_chained_to_the_training_answers_word_for_word(trained: Trained) -> None:
    (made,) = (trained.home / "out" / "exports").glob("*/*-Q8_0.gguf")
    assert answers_of_gguf(made, trained.adapter) == TAUGHT
    assert "proof    passed, run by llama.cpp" in trained.said
    report = json.loads(made.with_name(f"{made.name}.export.json").read_text(encoding="utf-8"))
    assert report["proof"]["passed"] is True


def test_an_f16_answers_word_for_word(trained: Trained) -> None:
    assert answers_of_gguf(trained.exported("--quantization", "f16"), trained.adapter) == TAUGHT


def test_a_q4_k_m_answers_in_llama_cpp(trained: Trained) -> None:
    """So small a model keeps little of what four bits leave: most of the answers, not all of them, are as taught."""
    found = answers_of_gguf(trained.exported("--quantization", "q4_k_m"), trained.adapter)
    assert sum(answer == taught for answer, taught in zip(found, TAUGHT, strict=True)) >= 3, found


def test_a_merged_model_answers_word_for_word_in_transformers(trained: Trained) -> None:
    assert answers_of_folder(trained.exported("--format", "merged")) == TAUGHT


def test_an_adapter_as_gguf_answers_word_for_word_over_its_base(trained: Trained, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    model = ModelSpec(name="tiny", path=str(TINY))
    job = ConvertJob(model=model, adapter=None, out=str(base), type="f16", name="tiny", memory=64)
    run_job(job, Made, backend="none")
    made = trained.exported("--format", "lora-gguf")
    assert answers_of_gguf(base, trained.adapter, lora=made) == TAUGHT


def test_the_adapter_was_not_touched_by_any_of_it(trained: Trained) -> None:
    assert not [path for path in trained.home.rglob("*") if path.name.endswith(".partial")]
    kept = next((trained.home / "out" / "runs").glob("*/adapter/adapter_model.safetensors"))
    assert (trained.adapter / "adapter_model.safetensors").read_bytes() == kept.read_bytes()


# --- what cannot work is said before anything is done -----------------------------------------------------------------


def test_an_architecture_that_cannot_be_exported_fails_before_a_step_is_trained(tmp_path: Path) -> None:
    model = tmp_path / "abacus"
    shutil.copytree(TINY, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["AbacusForCausalLM"]}), encoding="utf-8")
    done = backprop(
        *("train", "--data", str(DATA), "--model", str(model), "--steps", "5", "--export", "q8_0", "-o", "out"),
        cwd=tmp_path,
        HOME=str(tmp_path),
        LLAMA_CPP_DIR="",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "AbacusForCausalLM" in done.stderr
    assert "step 1/" not in done.stdout + done.stderr


# --- memory -----------------------------------------------------------------------------------------------------------


def wide_model(folder: Path) -> Path:
    """A Qwen2 of 260 MB in float32, and an adapter on its widest layers beside it."""
    hidden, inner, vocabulary = 1024, 4096, 16_384
    folder.mkdir()
    for file in TINY.iterdir():
        if file.suffix != ".safetensors":
            shutil.copyfile(file, folder / file.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 3, "vocab_size": vocabulary}
    config |= {"dtype": "float32", "num_attention_heads": 8, "num_key_value_heads": 8}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors: dict[str, NDArray[np.float32]] = {}
    tensors["model.embed_tokens.weight"] = np.full((vocabulary, hidden), 0.01, np.float32)
    tensors["model.norm.weight"] = np.ones(hidden, np.float32)
    adapter: dict[str, NDArray[np.float32]] = {}
    for layer in range(3):
        at = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = np.ones(hidden, np.float32)
        for name in ("q", "k", "v", "o"):
            tensors[f"{at}.self_attn.{name}_proj.weight"] = np.full((hidden, hidden), 0.01, np.float32)
            if name != "o":
                tensors[f"{at}.self_attn.{name}_proj.bias"] = np.zeros(hidden, np.float32)
        for name, shape in (("gate", (inner, hidden)), ("up", (inner, hidden)), ("down", (hidden, inner))):
            tensors[f"{at}.mlp.{name}_proj.weight"] = np.full(shape, 0.01, np.float32)
            adapter[f"base_model.model.{at}.mlp.{name}_proj.lora_A.weight"] = np.ones((8, shape[1]), np.float32)
            adapter[f"base_model.model.{at}.mlp.{name}_proj.lora_B.weight"] = np.ones((shape[0], 8), np.float32)
    save_file(tensors, folder / "model.safetensors")
    lora = folder.with_name("lora")
    lora.mkdir()
    save_file(adapter, lora / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]}
    (lora / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel holds a process to its limit of memory there")
@pytest.mark.parametrize("wanted", ["convert", "merge"])
def test_a_model_larger_than_the_memory_that_is_left_is_exported(tmp_path: Path, wanted: str) -> None:
    """260 MB of weights, 32 MiB for the stage; the kernel refuses the child more than 128 MiB of data over its start."""
    import resource

    model = ModelSpec(name="wide", path=str(wide_model(tmp_path / "wide")))
    adapter, out = str(tmp_path / "lora"), tmp_path / "out"
    job: ConvertJob | MergeJob = (
        ConvertJob(model=model, adapter=adapter, out=str(out), type="f16", name="wide", memory=32)
        if wanted == "convert"
        else MergeJob(model=model, adapter=adapter, out=str(out), memory=32)
    )

    def limited(message: ToParent) -> None:
        if isinstance(message, Hello):
            status = Path(f"/proc/{message.pid}/status").read_text(encoding="ascii")
            data = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmData"))
            resource.prlimit(message.pid, resource.RLIMIT_DATA, (data + (128 << 20), data + (128 << 20)))

    made = run_job(job, Made, backend="none", on_message=limited)
    assert made.bytes > 120e6
