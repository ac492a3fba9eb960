"""`backprop estimate` and `Trainer.estimate`: what they say, and what they refuse. Nothing is loaded, and no card is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate import Trainer
from backpropagate_protocol.errors import UserInputError


def backprop(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "backpropagate", "estimate", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_a_card_that_is_not_here_is_reckoned_with_by_name_and_memory(tmp_path: Path) -> None:
    done = backprop(tmp_path, "--model", "qwen2.5-7b", "--gpu", "RTX 4080", "--vram-gb", "16", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["fits"] is True
    assert said["parameters"] == 7_615_616_512
    assert said["memory"]["held"] == sum(
        said["memory"][part] for part in ("weights", "adapter", "gradients", "optimizer")
    )
    assert said["seconds"]["low"] < said["seconds"]["high"]
    assert list(tmp_path.iterdir()) == []


def test_every_part_is_a_line_for_people(tmp_path: Path) -> None:
    said = backprop(tmp_path, "--model", "llama-3.2-1b", "--vram-gb", "8").stdout
    names = [line.split()[0] for line in said.splitlines() if not line.startswith(" ")]
    for name in ("parameters", "weights", "adapter", "optimizer", "activations", "logits", "peak", "fits", "disk"):
        assert name in names


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model", "someone/unheard-of"], "INPUT_MODEL_NOT_FOUND"),
        (["--model", "llama-3.2-1b", "--gpu", "RTX 4080"], "INPUT_VALIDATION_FAILED"),
        (["--model", "llama-3.2-1b", "--calibrate", "--vram-gb", "8"], "INPUT_VALIDATION_FAILED"),
        (["--model", "llama-3.2-1b", "--calibrate", "--backend", "cpu"], "INPUT_VALIDATION_FAILED"),
    ],
)
def test_what_cannot_be_told_is_refused_with_its_reason(tmp_path: Path, arguments: list[str], code: str) -> None:
    done = backprop(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"[{code}]: ")


def test_a_program_gets_the_same_estimate(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "a few words in a row"}\n' * 64)
    trainer = Trainer("llama-3.2-1b", backend="cuda", lora_r=16, max_length=512, output_dir=tmp_path / "out")
    found = trainer.estimate(data, vram_gb=24, gpu="RTX 4090", epochs=1)
    assert found.largest == 8
    assert found.steps == 8
    assert found.seconds is not None
    assert not (tmp_path / "out").exists()


def test_a_folder_with_its_config_alone_is_enough(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = Trainer(tmp_path, backend="cpu", output_dir=tmp_path / "out").estimate()
    assert found.exact
    assert not found.setup.four_bit
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserInputError, match="tells no shape"):
        Trainer(tmp_path, backend="cpu").estimate()
