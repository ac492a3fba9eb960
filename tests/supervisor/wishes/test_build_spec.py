"""From wishes to a RunSpec: the numbers that come out, and every wish that is refused before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate.wishes.build_spec import batch_plan, build_spec
from backpropagate.wishes.models import resolve_model
from backpropagate.wishes.notices import notices
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.spec import RunSpec


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "hello"}\n')
    return path


def build(tmp_path: Path, **arguments: object) -> RunSpec:
    wishes = {"backend": "toy", "data": tmp_path / "data.jsonl", "output_dir": tmp_path / "out", **arguments}
    return build_spec(Settings(wishes, environ={}, folder=tmp_path))


def refusal(tmp_path: Path, **arguments: object) -> str:
    with pytest.raises(BackpropagateError) as caught:
        build(tmp_path, **arguments)
    return caught.value.code


@pytest.mark.parametrize(
    ("steps", "wished", "warmup", "told"),
    [(100, None, 10, False), (11, None, 10, False), (10, None, 1, False), (5, None, 0, False), (5, 4, 4, False), (5, 8, 8, True)],
)  # fmt: skip
def test_a_very_short_training_reaches_its_learning_rate_unless_it_was_told_not_to(
    tmp_path: Path, data: Path, steps: int, wished: int | None, warmup: int, told: bool
) -> None:
    assert build(tmp_path, steps=steps, warmup_steps=wished).train.warmup_steps == warmup
    wishes = {"backend": "toy", "steps": steps, "warmup_steps": wished}
    said = notices(Settings(wishes, environ={}, folder=tmp_path))
    assert any("stays below its peak" in text for text in said) is told


def test_the_example_rows_that_come_along_have_a_name(tmp_path: Path, data: Path) -> None:
    source = Path(build(tmp_path, data="sample").data.source)
    assert len(source.read_text(encoding="utf-8").splitlines()) == 5
    assert refusal(tmp_path, data="sample", split="test") == "CONFIG_INVALID_SETTING"


@pytest.mark.parametrize(
    ("share", "every", "told"), [(0.1, 10, False), (0.5, 2, False), (0.15, 7, False), (0.4, 2, True)]
)
def test_every_nth_row_is_held_out_and_a_share_that_cannot_be_had_is_told(
    tmp_path: Path, data: Path, share: float, every: int, told: bool
) -> None:
    assert build(tmp_path, eval_split=share).data.holdout == every
    said = notices(Settings({"backend": "toy", "eval_split": share}, environ={}, folder=tmp_path))
    assert [text for text in said if "a share of" in text] == (
        [f"every {every}. row is held out: a share of {1 / every:.2f}, which is as near to {share:g} as can be had"]
        if told
        else []
    )


def test_what_was_not_asked_for_has_the_documented_defaults(tmp_path: Path, data: Path) -> None:
    spec = build(tmp_path)

    assert (spec.lora.r, spec.lora.alpha, spec.lora.targets) == (256, 512, ("all-linear",))
    assert (spec.train.steps, spec.train.effective_batch, spec.train.learning_rate) == (100, 8, 2e-4)
    assert (spec.train.seed, spec.data.max_length, spec.data.samples) == (42, 2048, None)
    assert spec.data.source == str(data)
    assert spec.output == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("batch", "accumulation", "effective", "micro"),
    [
        (None, None, 8, None),
        (2, None, 8, 2),
        (16, None, 16, 16),
        (3, None, 6, 3),
        (None, 4, 8, 2),
        (None, 16, 16, 1),
        (4, 4, 16, 4),
    ],
)
def test_the_effective_batch_follows_from_what_was_given(
    batch: int | None, accumulation: int | None, effective: int, micro: int | None
) -> None:
    assert batch_plan(batch, accumulation, 8) == (effective, micro)


def test_a_rank_alone_implies_twice_the_alpha(tmp_path: Path, data: Path) -> None:
    assert build(tmp_path, lora_r=12).lora.alpha == 24
    assert build(tmp_path, lora_r=12, lora_alpha=12).lora.alpha == 12


def test_a_training_preset_sets_batch_rank_rate_and_steps(tmp_path: Path, data: Path) -> None:
    spec = build(tmp_path, preset="balanced", steps=7)

    assert (spec.train.effective_batch, spec.lora.r, spec.train.learning_rate, spec.train.steps) == (16, 16, 2e-4, 7)


def test_epochs_take_the_place_of_steps(tmp_path: Path, data: Path) -> None:
    spec = build(tmp_path, epochs=2.5)

    assert (spec.train.steps, spec.train.epochs) == (None, 2.5)
    assert build(tmp_path, epochs=2, preset="fast").train.steps is None
    assert refusal(tmp_path, epochs=2, steps=5) == "CONFIG_INVALID_SETTING"


def test_a_missing_data_file_is_refused_at_once(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "INPUT_DATASET_NOT_FOUND"
    assert refusal(tmp_path, data="some/folder/x.jsonl") == "INPUT_DATASET_NOT_FOUND"
    assert refusal(tmp_path, data="owner/file.jsonl") == "INPUT_DATASET_NOT_FOUND"


def test_a_hub_id_is_taken_as_it_is(tmp_path: Path) -> None:
    assert build(tmp_path, data="HuggingFaceH4/ultrachat_200k").data.source == "HuggingFaceH4/ultrachat_200k"


def test_no_data_an_empty_file_and_a_folder_are_refused(tmp_path: Path, data: Path) -> None:
    data.write_text("")

    assert refusal(tmp_path) == "INPUT_DATASET_INVALID"
    assert refusal(tmp_path, data=tmp_path) == "INPUT_DATASET_INVALID"
    assert refusal(tmp_path, data=None) == "INPUT_VALIDATION_FAILED"


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac may have it")
def test_mlx_off_a_mac_is_refused(tmp_path: Path, data: Path) -> None:
    assert refusal(tmp_path, backend="mlx") == "CONFIG_INVALID_SETTING"


def test_an_output_that_is_a_file_is_refused_and_nothing_is_made(tmp_path: Path, data: Path) -> None:
    (tmp_path / "taken").write_text("")

    assert refusal(tmp_path, output_dir=tmp_path / "taken" / "deep") == "CONFIG_OUTPUT_UNWRITABLE"
    build(tmp_path, output_dir=tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(
    sys.platform == "win32" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="root may write anywhere"
)
def test_an_output_without_permission_is_refused(tmp_path: Path, data: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)

    assert refusal(tmp_path, output_dir=locked / "out") == "CONFIG_OUTPUT_UNWRITABLE"


def test_an_interpreter_that_does_not_exist_is_refused(tmp_path: Path, data: Path) -> None:
    assert refusal(tmp_path, runner_python=tmp_path / "nobody") == "CONFIG_INVALID_SETTING"
    assert build(tmp_path, runner_python=sys.executable).runner_python == os.path.abspath(sys.executable)


def test_temperatures_must_rise(tmp_path: Path, data: Path) -> None:
    assert refusal(tmp_path, temperature_warn=95, temperature_pause=90) == "CONFIG_INVALID_SETTING"


@pytest.mark.parametrize("name", ["qwen2.5-7b", "Qwen2.5-7B"])
def test_a_preset_name_is_a_model(name: str) -> None:
    assert resolve_model(name).path == "Qwen/Qwen2.5-7B-Instruct"


def test_tiny_is_the_bundled_base() -> None:
    assert (Path(resolve_model("tiny").path) / "config.json").is_file()


def test_a_model_folder_needs_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(BackpropagateError, match=r"has no config\.json") as caught:
        resolve_model(str(tmp_path / "model"))
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"

    (tmp_path / "model" / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path / "model")).path == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "a/b/c", "two words", "qwen2.5-7bb", "tinny"])
def test_what_can_be_no_model_is_refused(name: str) -> None:
    with pytest.raises(BackpropagateError) as caught:
        resolve_model(name)
    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"


def test_the_research_licence_is_said_before_the_run(tmp_path: Path, data: Path) -> None:
    said = notices(Settings({"model": "Qwen/Qwen2.5-3B-Instruct"}, environ={}, folder=tmp_path))

    assert len(said) == 1
    assert "research" in said[0]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB with next to nothing left on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a disk")
    (folder / "full").write_bytes(bytes(600 * 1024))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_system_that_states_no_size_is_no_full_disk(tmp_path: Path, data: Path) -> None:
    if os.access("/proc", os.W_OK):  # as root; for others the folder is refused before its size matters
        assert build(tmp_path, output_dir="/proc/out").output == "/proc/out"
    else:
        assert refusal(tmp_path, output_dir="/proc/out") == "CONFIG_OUTPUT_UNWRITABLE"


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_without_space_is_refused_before_anything_is_written(
    tmp_path: Path, data: Path, tiny_disk: Path
) -> None:
    assert refusal(tmp_path, output_dir=tiny_disk / "out") == "RUNTIME_DISK_FULL"
    assert [path.name for path in tiny_disk.iterdir()] == ["full"]
