"""A second place for what is finished: linked or copied, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from backpropagate_protocol.errors import ExportError, UserInputError
from backpropagate_protocol.jobs import PlaceJob
from backpropagate_protocol.messages import Made, Phase
from backpropagate_runner.export import place as place_module
from backpropagate_runner.export.digests import digest_of
from tests.runner.export.heard import Heard
from tests.runner.export.test_adapter import lora_adapter, rewritten

LARGE = place_module._LINKED + 1


def placed(source: Path, out: Path) -> Made:
    heard = Heard(Phase.PLACE)
    made = place_module.place(PlaceJob(source=str(source), out=str(out)), heard.stage)
    assert heard.signs
    return made


def large(path: Path) -> Path:
    """A hole with an end."""
    with open(path, "wb") as file:
        file.truncate(LARGE - 1)
        file.seek(LARGE - 1)
        file.write(b"!")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_small_file_is_copied_so_that_nobody_edits_two(tmp_path: Path) -> None:
    source, out = tmp_path / "a.json", tmp_path / "there" / "b.json"
    source.write_bytes(b"{}")
    made = placed(source, out)
    assert out.read_bytes() == b"{}"
    assert not out.samefile(source)
    assert (made.path, made.bytes, made.digest) == (str(out), 2, digest_of(source))
    assert names(out.parent) == {"b.json"}


def test_a_large_file_is_linked(tmp_path: Path) -> None:
    source = large(tmp_path / "a.gguf")
    made = placed(source, tmp_path / "b.gguf")
    assert (tmp_path / "b.gguf").samefile(source)
    assert made.bytes == LARGE
    assert placed(source, tmp_path / "b.gguf").digest == made.digest  # and again, over itself
    assert names(tmp_path) == {"a.gguf", "b.gguf"}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of Windows differ")
def test_a_large_file_that_cannot_be_linked_is_copied(tmp_path: Path) -> None:
    source = large(tmp_path / "a.gguf")
    source.chmod(0o444)
    if os.access(source, os.W_OK):
        pytest.skip("this user may write anywhere")
    placed(source, tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").samefile(source)
    assert digest_of(tmp_path / "b.gguf") == digest_of(source)


def test_a_copy_has_every_byte(tmp_path: Path) -> None:
    source = large(tmp_path / "a.gguf")
    told: list[int] = []
    place_module._copy(source, tmp_path / "b.gguf", told.append)
    assert sum(told) == LARGE
    assert digest_of(tmp_path / "b.gguf") == digest_of(source)


def test_another_file_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old!")
    placed(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"new"


def test_the_same_content_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"same")
    (tmp_path / "b").write_bytes(b"same")
    before = (tmp_path / "b").stat()
    placed(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").stat().st_ino == before.st_ino


def test_a_place_of_its_own_is_no_second_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"me")
    made = placed(tmp_path / "a", tmp_path / "a")
    assert made.bytes == 2
    assert (tmp_path / "a").read_bytes() == b"me"


def test_a_folder_is_placed_with_all_that_is_in_it(tmp_path: Path) -> None:
    source, out = tmp_path / "a", tmp_path / "b"
    (source / "deep").mkdir(parents=True)
    (source / "one").write_bytes(b"1")
    (source / "deep" / "two").write_bytes(b"22")
    large(source / "three")
    out.mkdir()
    (out / "stale").write_bytes(b"gone")
    made = placed(source, out)
    assert made.bytes == 3 + LARGE
    assert names(out) == {"one", "deep", "three"}
    assert (out / "deep" / "two").read_bytes() == b"22"
    assert (out / "three").samefile(source / "three")
    assert names(tmp_path) == {"a", "b"}
    inode = out.stat().st_ino
    assert placed(source, out) == made
    assert out.stat().st_ino == inode


def test_an_adapter_without_usable_numbers_is_placed_nowhere(tmp_path: Path) -> None:
    source = lora_adapter(tmp_path / "a")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    rewritten(source, **{name: np.full((512, 4), np.inf, np.float32)})
    with pytest.raises(UserInputError, match="NaN or infinite") as told:
        placed(source, tmp_path / "b")
    assert told.value.code == "INPUT_ADAPTER_INVALID"
    assert names(tmp_path) == {"a"}


def test_nothing_to_be_placed_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing at"):
        placed(tmp_path / "no", tmp_path / "b")
    assert names(tmp_path) == set()
