"""The proof of a GGUF: honest exports pass at every quantization, and each kind of broken one is caught by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from backpropagate_protocol.errors import ExportError, GGUFExportError
from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.jobs import ProveJob
from backpropagate_protocol.measured import Check, Proof
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.reference import read_reference
from backpropagate_runner.export.gguf_tensors import Tensor
from backpropagate_runner.export.gguf_vocab import Vocabulary
from backpropagate_runner.export.prove import prove
from backpropagate_runner.export.read_gguf import GgufFile
from tests.backends.torch_runs import FOREIGN_WARNINGS
from tests.runner.export import gguf_models
from tests.runner.export.heard import Heard
from tests.runner.export.lesson import PROMPTS, Lesson, forge, requantize, teach, untaught, warmed

pytest.importorskip("llama_cpp")
pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, FOREIGN_WARNINGS]

Rows = NDArray[np.generic]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Lesson:
    return teach(tmp_path_factory.mktemp("lesson"))


def proof(lesson: Lesson, target: Path, quantization: str, verifier: str = "llama", **changes: object) -> Proof:
    job = ProveJob(
        reference=str(lesson.reference),
        target=str(target),
        kind="gguf",
        quantization=quantization,
        model=lesson.model,
        adapter=str(lesson.adapter) if lesson.adapter else None,
        verifier=verifier,
    )
    return prove(msgspec.structs.replace(job, **changes), Heard(Phase.PROVE).stage)


def checks(made: Proof) -> dict[str, Check]:
    return {check.name: check for check in made.checks}


def failed(made: Proof) -> set[str]:
    assert made.passed == all(check.passed for check in made.checks)
    return {check.name for check in made.checks if not check.passed}


# --- honest ones ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_an_honest_export_passes_at_every_quantization(lesson: Lesson, quantization: str) -> None:
    made = proof(lesson, lesson.made(quantization), quantization)
    assert failed(made) == set(), made
    assert {"tokens", "template", "tensors", "metadata", "kl", "agreement", "answers"} <= checks(made).keys()
    assert (made.verifier, made.prompts) == ("llama", len(PROMPTS))
    assert made.positions > 5 * len(PROMPTS)
    # Far from the bound: what an honest export of this model has is no chance result.
    kl = checks(made)["kl"]
    assert kl.value is not None
    assert kl.bound is not None
    assert kl.value < kl.bound / 3


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q4_k_m"])
def test_without_llama_an_honest_export_is_proved_by_all_its_numbers(lesson: Lesson, quantization: str) -> None:
    made = proof(lesson, lesson.made(quantization), quantization, "weights")
    assert failed(made) == set(), made
    assert checks(made).keys() == {"template", "tokens", "tensors", "adapter", "metadata"}
    assert made.verifier == "weights"


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
def test_every_answer_of_a_fine_export_is_the_trained_one(lesson: Lesson, quantization: str) -> None:
    answers = checks(proof(lesson, lesson.made(quantization), quantization))["answers"]
    assert answers.value == 1.0


# --- broken ones ------------------------------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("verifier", ["llama", "weights"])
COARSE = pytest.mark.parametrize("quantization", ["f16", "q4_k_m"])


def quantized(made: Path, quantization: str) -> Path:
    return made if quantization == "f16" else requantize(made, made.with_suffix(".q.gguf"), quantization)


def arranged(name: str, arrange: Callable[[Rows], Rows]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Puts other numbers into one tensor."""

    def change(honest: list[Tensor]) -> list[Tensor]:
        assert name in {tensor.name for tensor in honest}
        return [
            dataclasses.replace(tensor, arrange=arrange, step=tensor.shape[0]) if tensor.name == name else tensor
            for tensor in honest
        ]

    return change


def heads_swapped(rows: Rows) -> Rows:
    """The first two of four heads."""
    one, other, *rest = np.split(rows, 4)
    return np.concatenate([other, one, *rest])


def halves_interleaved(rows: Rows) -> Rows:
    """Each head as llama.cpp wants it of other families."""
    heads = rows.reshape(4, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


@BOTH
@COARSE
@pytest.mark.parametrize("fault", [heads_swapped, halves_interleaved])
def test_a_permuted_head_is_caught(
    lesson: Lesson, tmp_path: Path, fault: Callable[[Rows], Rows], verifier: str, quantization: str
) -> None:
    made = forge(lesson, tmp_path / "made.gguf", changed=arranged("blk.1.attn_q.weight", fault))
    result = proof(lesson, quantized(made, quantization), quantization, verifier)
    assert "tensors" in failed(result)
    assert "blk.1.attn_q.weight" in checks(result)["tensors"].detail


@BOTH
@COARSE
@pytest.mark.parametrize("name", ["blk.2.ffn_down.weight", "blk.0.attn_norm.weight", "token_embd.weight"])
def test_a_tensor_of_zeros_is_caught(
    lesson: Lesson, tmp_path: Path, name: str, verifier: str, quantization: str
) -> None:
    made = tmp_path / "zeroed.gguf"
    shutil.copy(lesson.made(quantization), made)
    info = GgufFile(made).tensors[name]
    with open(made, "r+b") as file:
        file.seek(info.offset)
        file.write(bytes(info.bytes))
    result = proof(lesson, made, quantization, verifier)
    assert "tensors" in failed(result)
    assert name in checks(result)["tensors"].detail


@BOTH
def test_numbers_that_are_none_are_caught(lesson: Lesson, tmp_path: Path, verifier: str) -> None:
    made = tmp_path / "none.gguf"
    shutil.copy(lesson.made("f16"), made)
    info = GgufFile(made).tensors["blk.1.ffn_gate.weight"]
    with open(made, "r+b") as file:
        file.seek(info.offset)
        file.write(b"\xff" * 64)
    result = proof(lesson, made, "f16", verifier)
    assert failed(result) >= ({"tensors", "kl", "relative_error"} if verifier == "llama" else {"tensors"})


@BOTH
def test_a_missing_tensor_is_caught(lesson: Lesson, tmp_path: Path, verifier: str) -> None:
    name = "blk.1.ffn_up.weight"
    made = forge(
        lesson, tmp_path / "made.gguf", changed=lambda honest: [tensor for tensor in honest if tensor.name != name]
    )
    result = proof(lesson, made, "f16", verifier)
    assert failed(result) == {"tensors"}
    assert name in checks(result)["tensors"].detail


@BOTH
def test_the_base_without_its_adapter_is_caught(lesson: Lesson, tmp_path: Path, verifier: str) -> None:
    made = forge(dataclasses.replace(lesson, adapter=_empty(lesson.adapter, tmp_path)), tmp_path / "made.gguf")
    assert {"tensors", "adapter"} <= failed(proof(lesson, made, "f16", verifier))


def _empty(adapter: Path | None, folder: Path) -> Path:
    """The same adapter, with zeros in place of what was learnt."""
    from safetensors.numpy import load_file, save_file

    assert adapter is not None
    empty = folder / "empty"
    shutil.copytree(adapter, empty)
    weights = load_file(empty / "adapter_model.safetensors")
    save_file({name: np.zeros_like(values) for name, values in weights.items()}, empty / "adapter_model.safetensors")
    return empty


@BOTH
@COARSE
def test_a_wrong_rotary_base_is_caught(lesson: Lesson, tmp_path: Path, verifier: str, quantization: str) -> None:
    made = forge(lesson, tmp_path / "made.gguf", metadata={"rope.freq_base": 500000.0})
    result = proof(lesson, quantized(made, quantization), quantization, verifier)
    assert "metadata" in failed(result)
    assert "rope.freq_base is 500000" in checks(result)["metadata"].detail


@BOTH
@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "are another text"),
        ("{{ raise_exception('never') }}", "are another text"),
        ("{% for m in messages %}", "it is no template"),
        (None, "has none"),
    ],
)
def test_a_wrong_template_is_caught(
    lesson: Lesson, tmp_path: Path, written: str | None, why: str, verifier: str
) -> None:
    made = forge(
        lesson,
        tmp_path / "made.gguf",
        vocabulary=lambda honest: dataclasses.replace(honest, chat_template=written),
    )
    result = proof(lesson, made, "f16", verifier)
    assert failed(result) == {"template"}
    assert why in checks(result)["template"].detail


def test_a_template_that_differs_only_with_a_system_turn_is_caught(lesson: Lesson, tmp_path: Path) -> None:
    def without_system(honest: Vocabulary) -> Vocabulary:
        assert honest.chat_template is not None
        line = "{%- for message in messages -%}"
        assert line in honest.chat_template
        fault = "{%- for message in messages if message['role'] != 'system' -%}"
        return dataclasses.replace(honest, chat_template=honest.chat_template.replace(line, fault))

    result = proof(lesson, forge(lesson, tmp_path / "made.gguf", vocabulary=without_system), "f16")
    assert failed(result) == {"template"}
    assert "2 of 9" in checks(result)["template"].detail


@BOTH
def test_swapped_tokens_are_caught(lesson: Lesson, tmp_path: Path, verifier: str) -> None:
    def swapped(honest: Vocabulary) -> Vocabulary:
        tokens = list(honest.tokens)
        tokens[700], tokens[701] = tokens[701], tokens[700]
        return dataclasses.replace(honest, tokens=tokens)

    result = proof(lesson, forge(lesson, tmp_path / "made.gguf", vocabulary=swapped), "f16", verifier)
    assert "metadata" in failed(result)
    assert "token 700" in checks(result)["metadata"].detail


@BOTH
@pytest.mark.parametrize("family", ["qwen2", "llama3", "phi3"])
def test_another_way_of_splitting_text_is_caught(tmp_path: Path, family: str, verifier: str) -> None:
    """Where the vocabulary has tokens that the other way would cut. Without room for the model, its vocabulary is loaded."""
    other = untaught(warmed(), gguf_models.save(family, tmp_path / family), tmp_path)
    honest = proof(other, forge(other, tmp_path / "honest.gguf"), "f16")
    assert failed(honest) == set(), honest
    made = forge(other, tmp_path / "made.gguf", vocabulary=lambda honest: dataclasses.replace(honest, pre="gpt-2"))
    assert failed(proof(other, made, "f16", verifier)) == {"tokens"}


def test_a_template_that_writes_the_hour_is_rendered_at_the_hour_of_the_reference(tmp_path: Path) -> None:
    model = gguf_models.save("qwen2", tmp_path / "qwen2")
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    other = untaught(warmed(), model, tmp_path)
    honest = proof(other, forge(other, tmp_path / "honest.gguf"), "f16")
    assert "template" not in failed(honest), honest


def test_a_bos_that_training_did_not_have_is_caught(lesson: Lesson, tmp_path: Path) -> None:
    def begun(honest: Vocabulary) -> Vocabulary:
        return dataclasses.replace(honest, special={**honest.special, "bos": 0}, add_bos=True)

    result = proof(lesson, forge(lesson, tmp_path / "made.gguf", vocabulary=begun), "f16")
    assert failed(result) == {"tokens"}


@BOTH
def test_a_wrong_end_token_is_caught(lesson: Lesson, tmp_path: Path, verifier: str) -> None:
    def endless(honest: Vocabulary) -> Vocabulary:
        return dataclasses.replace(honest, special={**honest.special, "eos": 5})

    result = proof(lesson, forge(lesson, tmp_path / "made.gguf", vocabulary=endless), "f16", verifier)
    assert failed(result) == {"metadata"}
    assert "the eos token is 5, not 2" in checks(result)["metadata"].detail


def test_the_answers_alone_catch_what_the_numbers_would_not(lesson: Lesson, tmp_path: Path) -> None:
    """With the model's numbers as faulty as the file's, only running it tells."""
    fault = arranged("blk.1.attn_q.weight", halves_interleaved)
    made = forge(lesson, tmp_path / "made.gguf", changed=fault, metadata={"rope.freq_base": 500000.0})
    assert {"relative_error", "kl", "agreement", "answers"} <= failed(proof(lesson, made, "f16"))


def test_a_model_that_can_be_neither_read_nor_run_is_not_said_to_be_proved_by_its_weights(tmp_path: Path) -> None:
    """Its architecture is known to llama.cpp's converter alone, and there is no room to run it."""
    honest = gguf_models.save("qwen2", tmp_path / "qwen2")
    other = untaught(warmed(), honest, tmp_path)
    made = forge(other, tmp_path / "made.gguf")
    config = json.loads((honest / "config.json").read_text())
    (honest / "config.json").write_text(json.dumps({**config, "architectures": ["NobodysForCausalLM"]}))
    heard = Heard(Phase.PROVE)
    job = ProveJob(
        reference=str(other.reference),
        target=str(made),
        kind="gguf",
        quantization="f16",
        model=other.model,
        adapter=None,
        verifier="weights",
    )
    result = prove(job, heard.stage)
    assert result.verifier == "text"
    assert "tensors" not in checks(result)
    assert "compared with nothing" in heard.notices[0]


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_a_damaged_file_is_an_error_and_no_failed_proof(lesson: Lesson, tmp_path: Path) -> None:
    whole = lesson.made("f16").read_bytes()
    for size in (3, 100, 30_000, len(whole) - 1):
        short = tmp_path / "short.gguf"
        short.write_bytes(whole[:size])
        with pytest.raises(GGUFExportError, match=r"damaged|not a GGUF"):
            proof(lesson, short, "f16")


def test_a_reference_that_is_not_whole_is_an_error(lesson: Lesson, tmp_path: Path) -> None:
    broken = tmp_path / "reference"
    shutil.copytree(lesson.reference, broken)
    (broken / "logits.f32").write_bytes(b"1234")
    for reference in (broken, tmp_path / "nothing"):
        with pytest.raises(ExportError, match="nothing to compare with"):
            proof(lesson, lesson.made("f16"), "f16", reference=str(reference))


def test_a_model_that_was_too_large_to_ask_is_proved_by_its_weights(lesson: Lesson, tmp_path: Path) -> None:
    """Its reference holds the prompts, as text and tokens, and no answers."""
    from backpropagate_protocol.reference import ReferenceWriter

    whole = read_reference(lesson.reference)
    writer = ReferenceWriter(tmp_path / "silent")
    for prompt in whole.prompts:
        writer.add(msgspec.structs.replace(prompt, answer=(), gaps=(), ended=False, rows=0, first=0, offset=0), b"")
    writer.commit(msgspec.structs.replace(whole, why_not="it needs 140 GiB"))
    made = proof(lesson, lesson.made("q4_k_m"), "q4_k_m", reference=str(tmp_path / "silent"))
    assert (made.passed, made.verifier, made.positions) == (True, "weights", 0)
    assert checks(made).keys() == {"template", "tokens", "tensors", "adapter", "metadata"}
