"""Quantizing by the real llama.cpp: every type, and each way in which it goes wrong, by its true reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backpropagate_protocol.errors import GGUFExportError, UserInputError
from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.jobs import ConvertJob, QuantizeJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.convert import convert
from backpropagate_runner.export.quantize import plainly_named, quantize
from backpropagate_runner.export.read_gguf import GgufFile
from tests.runner.export.heard import Heard

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[3] / "fixtures" / "tiny-base"


@pytest.fixture(scope="module")
def f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "f16.gguf"
    model = ModelSpec(name="tiny", path=str(TINY))
    convert(
        ConvertJob(model=model, adapter=None, out=str(out), type="f16", name="tiny", memory=64),
        Heard(Phase.CONVERT).stage,
    )
    return out


def job(source: Path, out: Path, quantization: str = "q4_k_m") -> QuantizeJob:
    return QuantizeJob(source=str(source), out=str(out), quantization=quantization, threads=1)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_every_type_of_the_table_can_be_made(f16: Path, tmp_path: Path, quantization: str) -> None:
    heard = Heard(Phase.QUANTIZE)
    out = tmp_path / "out.gguf"
    made = quantize(job(f16, out, quantization), heard.stage)
    assert (made.path, made.bytes) == (str(out), out.stat().st_size)
    assert len(made.digest) == 64
    before, after = GgufFile(f16), GgufFile(out)
    assert after.tensors.keys() == before.tensors.keys()
    assert after.template == before.template
    wanted = quantization.upper().removesuffix("_S").removesuffix("_M").removesuffix("_L")
    assert wanted in {info.type for info in after.tensors.values()}
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_each_tensor_is_a_sign_of_progress(f16: Path, tmp_path: Path) -> None:
    heard = Heard(Phase.QUANTIZE)
    made = quantize(job(f16, tmp_path / "out.gguf"), heard.stage)
    assert heard.signs >= len(GgufFile(f16).tensors)
    last = heard.phases[-1]
    assert (last.done, last.total) == (made.bytes, made.bytes)


def test_the_source_is_never_touched(f16: Path, tmp_path: Path) -> None:
    before = f16.read_bytes()
    with pytest.raises(UserInputError, match="onto itself"):
        quantize(job(f16, f16), Heard(Phase.QUANTIZE).stage)
    link = tmp_path / "link.gguf"
    link.hardlink_to(f16)
    with pytest.raises(UserInputError, match="onto itself"):
        quantize(job(f16, link), Heard(Phase.QUANTIZE).stage)
    assert f16.read_bytes() == before


def test_a_quantized_source_is_refused(f16: Path, tmp_path: Path) -> None:
    first = tmp_path / "first.gguf"
    quantize(job(f16, first, "q8_0"), Heard(Phase.QUANTIZE).stage)
    with pytest.raises(UserInputError, match=r"quantized already \(Q8_0\)"):
        quantize(job(first, tmp_path / "second.gguf"), Heard(Phase.QUANTIZE).stage)


def test_an_unknown_quantization_is_refused(f16: Path, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="there is no quantization 'q9'"):
        quantize(job(f16, tmp_path / "out.gguf", "q9"), Heard(Phase.QUANTIZE).stage)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda whole: b"none of it", "not a GGUF"), (lambda whole: whole[:-1000], "ends at byte")],
    ids=["other", "cut"],
)
def test_a_damaged_source_leaves_what_was_there(
    f16: Path, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    source, out = tmp_path / "source.gguf", tmp_path / "out.gguf"
    source.write_bytes(damage(f16.read_bytes()))
    out.write_bytes(b"older")
    with pytest.raises(GGUFExportError, match=reason):
        quantize(job(source, out), Heard(Phase.QUANTIZE).stage)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "source.gguf"]


def test_what_llama_refuses_is_told_in_its_own_words(f16: Path, tmp_path: Path) -> None:
    """A key that its architecture needs is not there under its name."""
    source = tmp_path / "source.gguf"
    whole = f16.read_bytes()
    assert whole.count(b"qwen2.block_count") == 1
    source.write_bytes(whole.replace(b"qwen2.block_count", b"qwen2.block_cOunt"))
    with pytest.raises(GGUFExportError, match=r"qwen2\.block_count"):
        quantize(job(source, tmp_path / "out.gguf"), Heard(Phase.QUANTIZE).stage)
    assert not (tmp_path / "out.gguf").exists()


def test_an_error_while_telling_progress_ends_the_stage(f16: Path, tmp_path: Path) -> None:
    """As a planned fault does: nothing stays behind."""
    heard = Heard(Phase.QUANTIZE)
    stage = type(heard.stage)(Phase.QUANTIZE, heard.stage._voice, _at_fifth)
    with pytest.raises(RuntimeError, match="the fifth sign"):
        quantize(job(f16, tmp_path / "out.gguf"), stage)
    assert list(tmp_path.iterdir()) == []


def _at_fifth(number: int) -> None:
    if number == 5:
        raise RuntimeError("the fifth sign")


def test_a_folder_with_letters_of_a_language_gets_the_file_under_a_plain_name(f16: Path, tmp_path: Path) -> None:
    """As it has to be on Windows, where llama.cpp writes by names in the system's code page."""
    folder = tmp_path / "Jürgen 日本"
    folder.mkdir()
    target, before = folder / "maße.gguf.partial", os.getcwd()
    with plainly_named(target) as name:
        assert name.isascii()
        assert os.path.samefile(os.getcwd(), folder)
        Path(os.fsdecode(name)).write_bytes(b"made")
    assert [path.name for path in folder.iterdir()] == [target.name]
    assert target.read_bytes() == b"made"
    with plainly_named(folder / "other.partial"):
        pass  # nothing was written: a dry run, or a failure
    assert [path.name for path in folder.iterdir()] == [target.name]
    assert os.getcwd() == before
    quantize(job(f16, folder / "größe.gguf", "q8_0"), Heard(Phase.QUANTIZE).stage)
    assert GgufFile(folder / "größe.gguf").tensors


def test_rows_too_narrow_for_a_type_are_told(tmp_path: Path) -> None:
    from tests.runner.export import gguf_models

    source = tmp_path / "f16.gguf"
    model = ModelSpec(name="narrow", path=str(gguf_models.save("qwen2", tmp_path / "narrow")))
    convert(
        ConvertJob(model=model, adapter=None, out=str(source), type="f16", name="narrow", memory=64),
        Heard(Phase.CONVERT).stage,
    )
    made = quantize(job(source, tmp_path / "out.gguf"), Heard(Phase.QUANTIZE).stage)
    assert made.notes
    assert "too narrow for q4_k_m" in made.notes[0]
