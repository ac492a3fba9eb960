"""The registration of a GGUF with Ollama, from the file to a model that is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate_protocol.errors import OllamaRegistrationError
from backpropagate_protocol.jobs import RegisterJob
from backpropagate_protocol.messages import Done, Phase, Registered
from backpropagate_protocol.spec import PlannedFault
from backpropagate_runner.export.register import register
from tests.doubles.http_double import unused_port
from tests.doubles.ollama_server import OllamaDouble
from tests.runner.child import Child
from tests.runner.export.chat_templates import (
    CHATML,
    GEMMA_LIKE,
    LLAMA_LIKE,
    MISTRAL_LIKE,
    write_gguf,
)
from tests.runner.export.heard import Heard


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble() as running:
        yield running


def _register(
    double: OllamaDouble, path: Path, heard: Heard | None = None, *, quantize: str | None = None
) -> Registered:
    job = RegisterJob(gguf=str(path), name="my-model", host=double.url, quantize=quantize)
    return register(job, (heard or Heard(Phase.REGISTER)).stage)


def test_a_gguf_becomes_a_model_with_the_template_it_was_trained_with(double: OllamaDouble, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "My model-Q4_K_M.gguf", CHATML)
    heard = Heard(Phase.REGISTER)
    made = _register(double, path, heard)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert made == Registered("my-model", digest, "0.33.0-rc2", True, path.stat().st_size)
    model = double.models["my-model:latest"]
    assert model.template is not None
    assert "<|im_start|>user" in model.template
    assert model.parameters == {"stop": ["<|im_end|>", "<|im_start|>"]}
    assert model.files == {"model.gguf": f"sha256:{digest}"}
    assert heard.signs >= 5
    assert not heard.notices


def test_registering_again_uploads_nothing(double: OllamaDouble, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", CHATML)
    first = _register(double, path)
    assert (first.uploaded, _register(double, path).uploaded) == (path.stat().st_size, 0)
    assert sum(request.startswith("POST /api/blobs/") for request in double.requests) == 1


def test_ollama_is_asked_to_quantize_by_its_own_names(double: OllamaDouble, tmp_path: Path) -> None:
    _register(double, write_gguf(tmp_path / "m.gguf", CHATML), quantize="q4_k_m")
    assert double.models["my-model:latest"].quantize == "Q4_K_M"


def test_what_ollama_cannot_quantize_to_is_refused_before_the_upload(double: OllamaDouble, tmp_path: Path) -> None:
    with pytest.raises(OllamaRegistrationError, match="only to q8_0, q4_k_m, q4_k_s") as told:
        _register(double, write_gguf(tmp_path / "m.gguf", CHATML), quantize="q5_k_m")
    assert "backpropagate[export]" in told.value.suggestion
    assert not double.blobs


def test_a_template_that_cannot_be_derived_is_left_to_a_server_that_reads_it(
    double: OllamaDouble, tmp_path: Path
) -> None:
    made = _register(double, write_gguf(tmp_path / "m.gguf", MISTRAL_LIKE))
    assert not made.template
    assert double.models["my-model:latest"].template is None
    assert double.models["my-model:latest"].parameters == {}


def test_a_template_that_cannot_be_derived_is_an_error_on_an_older_server(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", MISTRAL_LIKE)
    with OllamaDouble("0.29.9") as double, pytest.raises(OllamaRegistrationError, match="does not read") as told:
        _register(double, path)
    assert "0.30.0" in told.value.suggestion
    assert not double.blobs


def test_a_template_with_a_date_is_told(double: OllamaDouble, tmp_path: Path) -> None:
    heard = Heard(Phase.REGISTER)
    assert _register(double, write_gguf(tmp_path / "m.gguf", LLAMA_LIKE), heard).template
    assert "writes the date" in heard.notices[0]


def test_a_file_without_a_template_is_registered_with_a_warning(double: OllamaDouble, tmp_path: Path) -> None:
    heard = Heard(Phase.REGISTER)
    assert not _register(double, write_gguf(tmp_path / "m.gguf", None), heard).template
    assert "no chat template" in heard.notices[0]


def test_a_template_without_a_place_for_system_messages_is_told(double: OllamaDouble, tmp_path: Path) -> None:
    heard = Heard(Phase.REGISTER)
    assert _register(double, write_gguf(tmp_path / "m.gguf", GEMMA_LIKE), heard).template
    assert "no place for a system message" in heard.notices[0]


def test_a_bad_name_is_refused_before_anyone_is_asked(tmp_path: Path) -> None:
    job = RegisterJob(gguf=str(tmp_path / "m.gguf"), name="my model", host=f"127.0.0.1:{unused_port()}")
    with pytest.raises(OllamaRegistrationError, match="'my model' cannot be the model name") as told:
        register(job, Heard(Phase.REGISTER).stage)
    assert "--ollama-name" in told.value.suggestion


def test_a_file_that_is_gone_is_told(double: OllamaDouble, tmp_path: Path) -> None:
    with pytest.raises(OllamaRegistrationError, match=r"m\.gguf cannot be read: No such file"):
        _register(double, tmp_path / "m.gguf")


def test_a_file_that_is_no_gguf_is_told(double: OllamaDouble, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"text" * 100)
    with pytest.raises(OllamaRegistrationError, match=r"m\.gguf is not a GGUF file"):
        _register(double, tmp_path / "m.gguf")


def test_a_model_that_is_not_there_after_success_is_a_failure(double: OllamaDouble, tmp_path: Path) -> None:
    double.faults.forget = True
    with pytest.raises(OllamaRegistrationError, match="knows no model my-model"):
        _register(double, write_gguf(tmp_path / "m.gguf", CHATML))


@pytest.mark.slow
def test_a_killed_registration_is_done_again_without_a_second_upload(double: OllamaDouble, tmp_path: Path) -> None:
    """A real child each time: the first is killed after the upload, while the model is made."""
    path = write_gguf(tmp_path / "m.gguf", CHATML)
    fault = PlannedFault(kind="sigkill", step=5, stage="register")
    for attempt, ends_well in ((1, False), (2, True)):
        job = RegisterJob(gguf=str(path), name="my-model", host=double.url, faults=(fault,), attempt=attempt)
        with Child(tmp_path / "runner.log", warm="none") as child:
            child.do(job)
            last = child.finish()
        assert isinstance(last, Done) is ends_well, last
    assert double.models
    assert isinstance(last, Done)
    assert isinstance(last.result, Registered)
    assert last.result.uploaded == 0
    assert sum(request.startswith("POST /api/blobs/") for request in double.requests) == 1
