"""The digest of weights: by their bytes, or by what a manifest says of them."""

from __future__ import annotations

from pathlib import Path

from backpropagate_protocol import durable, weights


def test_the_digest_of_an_adapter_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    first = weights.digest_in(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert weights.digest_in(tmp_path) == first != ""
    (tmp_path / "adapter_model.safetensors").write_bytes(b"other weights")
    assert weights.digest_in(tmp_path) != first
    assert weights.digest_in(tmp_path / "nothing") == ""


def test_the_digest_of_a_list_of_files_is_that_of_the_folder_they_lie_in(tmp_path: Path) -> None:
    for name in ("b.bin", "a.safetensors", "adapter_config.json"):
        (tmp_path / name).write_text(name)
    sums = {name: durable.file_entry(tmp_path / name).sha256 for name in durable.files_of(tmp_path)}
    assert weights.digest_of(sums) == weights.digest_in(tmp_path) != ""
    assert weights.digest_of({"README.md": "0"}) == ""
