"""`backprop estimate` and `Trainer.estimate`: what they say, and what they refuse. Nothing is loaded, and no card is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backpropagate import Trainer
from backpropagate.gpu_safety import get_gpu_status
from backpropagate.keep import locks
from backpropagate_protocol.errors import InvalidSettingError, UserInputError


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
    for name in (
        "parameters",
        "weights",
        "adapter",
        "optimizer",
        "activations",
        "logits",
        "peak",
        "fits",
        "disk",
        "time",
    ):
        assert name in names
    assert "time         not known: name a card that is known" in said


def test_what_is_small_is_said_in_small_units_and_no_row_is_longer_than_the_base_can_read(tmp_path: Path) -> None:
    """With flags that only matter to a run: whatever trains can be estimated."""
    flags = ("--standby", "off", "--grace", "9", "--name", "x", "--wait", "--detach")
    said = backprop(tmp_path, "--model", "tiny", "--backend", "cpu", *flags).stdout
    assert "parameters   0." not in said
    assert " 0.00 " not in said
    assert "rows of at most 1024 tokens" in said
    assert "on the card" not in said


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model", "someone/unheard-of"], "INPUT_MODEL_NOT_FOUND"),
        (["--model", "llama-3.2-1b", "--gpu", "RTX 4080"], "INPUT_VALIDATION_FAILED"),
        (["--model", "llama-3.2-1b", "--backend", "cpu", "--vram-gb", "16"], "CONFIG_INVALID_SETTING"),
        (["--model", "llama-3.2-1b", "--backend", "mlx"], "INPUT_VALIDATION_FAILED"),
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


@pytest.mark.parametrize("memory", ["16", -3, 0, float("nan"), True])
def test_a_memory_that_no_card_has_is_refused(memory: object) -> None:
    with pytest.raises(InvalidSettingError, match="vram_gb"):
        Trainer("llama-3.2-1b", backend="cuda").estimate(vram_gb=memory)  # type: ignore[arg-type]


def test_it_is_said_that_no_card_is_seen_and_that_more_fit_than_are_counted(tmp_path: Path) -> None:
    if get_gpu_status() is None:
        assert "reckoned for a CUDA card" in backprop(tmp_path, "--model", "llama-3.2-1b").stdout
    said = backprop(tmp_path, "--model", "llama-3.2-1b", "--vram-gb", "400", "--batch-size", "64").stdout
    assert "micro-batches up to 16 and more fit" in said


def test_a_card_that_a_training_has_is_not_calibrated_on(tmp_path: Path) -> None:
    """What is measured beside it would be wrong, and it might lose its memory."""
    status = get_gpu_status()
    if status is None:
        pytest.skip("no card is here")
    with locks.hold(locks.gpu_lock(status.uuid), "r", "the GPU"):
        assert backprop(tmp_path, "--model", "tiny", "--data", __file__, "--calibrate").returncode == 75


def test_a_folder_with_its_config_alone_is_enough(tmp_path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = Trainer(tmp_path, backend="cpu", output_dir=tmp_path / "out").estimate()
    assert found.exact
    assert not found.setup.four_bit
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserInputError, match="tells no shape"):
        Trainer(tmp_path, backend="cpu").estimate()
