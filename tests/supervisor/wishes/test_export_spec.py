"""From wishes to an ExportSpec: what follows from what, and every wish that is refused before anything starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from backpropagate.keep import exports
from backpropagate.wishes.build_spec import build_spec
from backpropagate.wishes.export_run import export_run
from backpropagate.wishes.export_spec import CONVERTER, ExportWish, file_name, reaching
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.export_formats import FORMATS, QUANTIZATIONS
from backpropagate_protocol.spec import ExportSpec, RunSpec


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder that says it is an adapter of the bundled model; nobody looks at its weights here."""
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    return folder


def settings(tmp_path: Path, environ: object = None, **arguments: object) -> Settings:
    wishes = {"output_dir": tmp_path / "out", **arguments}
    return Settings(wishes, environ=environ if isinstance(environ, dict) else {}, folder=tmp_path)


def wanted(tmp_path: Path, what: Path | str, environ: object = None, base: object = None, **given: object) -> RunSpec:
    """`given`: fields of ExportWish by their names; whatever else is a setting."""
    fields = {name: given.pop(name) for name in list(given) if name in ExportWish.__slots__}
    wish = ExportWish(**fields)  # type: ignore[arg-type]  # as written in each test
    return export_run(settings(tmp_path, environ, **given), str(what), wish, base=None if base is None else str(base))


def exported(tmp_path: Path, what: Path | str, environ: object = None, **given: object) -> ExportSpec:
    spec = wanted(tmp_path, what, environ, **given)
    assert spec.kind == "export"
    assert spec.export is not None
    return spec.export


def refusal(tmp_path: Path, what: Path | str, environ: object = None, **given: object) -> str:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BackpropagateError) as caught:
        wanted(tmp_path, what, environ, **given)
    assert sorted(tmp_path.rglob("*")) == before
    assert caught.value.suggestion
    return f"{caught.value.code}: {caught.value.message}"


def test_an_adapter_alone_becomes_its_lora_copy_named_after_its_folder(tmp_path: Path, adapter: Path) -> None:
    spec = exported(tmp_path, adapter)

    assert (spec.format, spec.quantization, spec.ollama_name) == ("lora", None, None)
    assert (spec.adapter, spec.name) == (str(adapter), "my-adapter")
    assert spec.destination == str(tmp_path / "out" / "exports" / "my-adapter")


@pytest.mark.parametrize(
    ("given", "quantization"),
    [
        ({"quantization": "Q8_0"}, "q8_0"),
        ({"ollama": True}, "q4_k_m"),
        ({"ollama_name": "mine"}, "q4_k_m"),
        ({"format": "GGUF"}, "q4_k_m"),
        ({"format": "gguf", "quantization": "f16"}, "f16"),
    ],
)
def test_a_quantization_or_ollama_means_a_gguf(
    tmp_path: Path, adapter: Path, given: dict[str, object], quantization: str
) -> None:
    spec = exported(tmp_path, adapter, **given)

    assert (spec.format, spec.quantization) == ("gguf", quantization)


def test_a_quantization_from_a_file_alone_does_not_make_a_gguf_of_everything(tmp_path: Path, adapter: Path) -> None:
    environ = {"BACKPROPAGATE_EXPORT__QUANTIZATION": "q6_k"}

    assert exported(tmp_path, adapter, environ).format == "lora"
    assert exported(tmp_path, adapter, environ, format="gguf").quantization == "q6_k"


def test_a_model_without_an_adapter_can_only_become_a_gguf(tmp_path: Path) -> None:
    assert exported(tmp_path, "tiny").format == "gguf"
    for kind in ("lora", "merged", "lora-gguf"):
        assert refusal(tmp_path, "tiny", format=kind).startswith("INPUT_VALIDATION_FAILED: ")


@pytest.mark.parametrize(
    "given",
    [
        {"format": "merged", "quantization": "q8_0"},
        {"format": "lora", "ollama": True},
        {"format": "lora-gguf", "ollama_name": "mine"},
        {"format": "merged", "lmstudio_dir": "models"},
    ],
)
def test_what_goes_with_a_gguf_only_is_refused_with_anything_else(
    tmp_path: Path, adapter: Path, given: dict[str, object]
) -> None:
    assert refusal(tmp_path, adapter, **given).startswith("CONFIG_INVALID_SETTING: ")


def test_a_name_for_ollama_in_the_settings_does_not_stand_in_the_way_of_a_merge(tmp_path: Path, adapter: Path) -> None:
    environ = {"BACKPROPAGATE_EXPORT__OLLAMA_NAME": "mine"}

    assert exported(tmp_path, adapter, environ, format="merged").ollama_name is None
    assert exported(tmp_path, adapter, environ, format="gguf").ollama_name == "mine"


@pytest.mark.parametrize(
    "given",
    [
        {"format": "ggml"},
        {"quantization": "q9_9"},
        {"name": ""},
        {"name": "a/b"},
        {"name": ".hidden"},
        {"name": "x" * 101},
        {"name": "what?"},
        {"ollama_name": "not a name"},
        {"ollama_name": "a/b/c/d"},
        {"ollama": True, "ollama_host": "ftp://somewhere"},
        {"format": "gguf", "llama_cpp_dir": "nowhere"},
        {"format": "gguf", "prompts": ("fine", " ")},
        {"export_memory": 1},
        {"runner_python": "no-such-program"},
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, adapter: Path, given: dict[str, object]
) -> None:
    assert refusal(tmp_path, adapter, **given).startswith("CONFIG_INVALID_SETTING: ")


def test_a_misspelled_format_is_guessed(tmp_path: Path, adapter: Path) -> None:
    assert "did you mean merged?" in refusal(tmp_path, adapter, format="merge")


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("nothing", "INPUT_MODEL_NOT_FOUND"),
        ("./nothing", "INPUT_MODEL_NOT_FOUND"),
        ("latest", "INPUT_RUN_NOT_FOUND"),
        ("0b0e5a52", "INPUT_RUN_NOT_FOUND"),
        ("", "INPUT_VALIDATION_FAILED"),
        ("a b", "INPUT_MODEL_NOT_FOUND"),
    ],
)
def test_what_is_nothing_is_said_to_be_nothing(tmp_path: Path, what: str, code: str) -> None:
    assert refusal(tmp_path, what).startswith(code)


def test_an_adapter_whose_base_is_gone_says_that_it_can_be_named(tmp_path: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(BackpropagateError) as caught:
        wanted(tmp_path, adapter)

    assert caught.value.code == "INPUT_MODEL_NOT_FOUND"
    assert "--base" in caught.value.suggestion
    assert wanted(tmp_path, adapter, base="tiny").model.name == "tiny"


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base_model_name_or_path": 3}'])
def test_an_adapter_that_cannot_be_read_is_refused(tmp_path: Path, adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)

    assert refusal(tmp_path, adapter).startswith("INPUT_MODEL_NOT_FOUND: ")


def test_a_destination_that_is_a_file_is_refused(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "file").write_text("")

    assert refusal(tmp_path, adapter, destination=str(tmp_path / "file")).startswith("CONFIG_OUTPUT_UNWRITABLE: ")
    assert refusal(tmp_path, adapter, destination=str(tmp_path / "file" / "below")).startswith(
        "CONFIG_OUTPUT_UNWRITABLE"
    )


def report_of(result: Path, size: int) -> exports.ExportReport:
    return exports.ExportReport(
        run_id="of-a-run",
        created="2026-01-01T00:00:00Z",
        result=result.name,
        bytes=size,
        digest="d",
        format="gguf",
        quantization="q8_0",
        base_model="tiny",
        base_path="/tiny",
        base_revision=None,
        adapter=None,
        adapter_digest="",
        architecture="Qwen2ForCausalLM",
        parameters=1,
        route={},
        proof=None,
    )


def test_an_export_gives_way_to_the_next_and_nothing_else_does(tmp_path: Path, adapter: Path) -> None:
    result = tmp_path / "here" / "mine-Q8_0.gguf"
    result.parent.mkdir()
    result.write_text("somebody else's")
    given: dict[str, object] = {"quantization": "q8_0", "name": "mine", "destination": str(result.parent)}

    assert refusal(tmp_path, adapter, **given).startswith("CONFIG_OUTPUT_UNWRITABLE: ")
    result.with_name(result.name + ".export.json").write_text("{}")  # nor does that say that we made it
    assert refusal(tmp_path, adapter, **given).startswith("CONFIG_OUTPUT_UNWRITABLE: ")
    result.unlink()
    made = tmp_path / "q8_0.gguf"
    made.write_text("ours")
    exports.publish(made, result, report_of(result, made.stat().st_size))
    assert exported(tmp_path, adapter, **given).name == "mine"


def test_an_export_does_not_replace_what_it_is_made_from(tmp_path: Path, adapter: Path) -> None:
    adapter.rename(tmp_path / "mine-lora")
    given = {"name": "mine", "destination": str(tmp_path)}

    assert "would replace what it is made from" in refusal(tmp_path, tmp_path / "mine-lora", **given)


def test_the_address_of_ollama_is_that_of_the_moment_unless_somebody_said_it(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume in another environment finds the server that is there now."""
    wish = exported(tmp_path, adapter, {"OLLAMA_HOST": "first:1"}, ollama=True)
    for place in ("first:1", "second:2"):
        monkeypatch.setenv("OLLAMA_HOST", place)
        assert reaching(wish).ollama_host == f"http://{place}"
    said = exported(tmp_path, adapter, ollama=True, ollama_host="said:3")
    assert reaching(said).ollama_host == "http://said:3"


def test_ollama_s_own_variable_is_read_after_ours(tmp_path: Path, adapter: Path) -> None:
    theirs = {"OLLAMA_HOST": "0.0.0.0:5000"}
    ours = {**theirs, "BACKPROPAGATE_EXPORT__OLLAMA_HOST": "http://server:1"}

    assert exported(tmp_path, adapter).ollama_host == ""
    assert exported(tmp_path, adapter, {"OLLAMA_HOST": ""}).ollama_host == ""
    assert exported(tmp_path, adapter, theirs, ollama=True).ollama_host == ""
    assert exported(tmp_path, adapter, ours, ollama=True).ollama_host == "http://server:1"


def test_the_name_for_ollama_is_made_of_the_export_s(tmp_path: Path, adapter: Path) -> None:
    assert exported(tmp_path, adapter, name="My Model (v2)", ollama=True).ollama_name == "my-model-v2"


def test_a_folder_of_llama_cpp_counts_if_its_converter_is_in_it(tmp_path: Path, adapter: Path) -> None:
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    theirs = {"LLAMA_CPP_DIR": str(folder)}

    assert exported(tmp_path, adapter, theirs, format="gguf").converter_folder is None
    (folder / CONVERTER).write_text("")
    assert exported(tmp_path, adapter, theirs, format="gguf").converter_folder == str(folder)
    assert exported(tmp_path, adapter, format="gguf", llama_cpp_dir=folder).converter_folder == str(folder)


def test_lm_studio_s_folder_is_the_one_named(tmp_path: Path, adapter: Path) -> None:
    assert exported(tmp_path, adapter, lmstudio_dir=tmp_path / "models").lmstudio == str(tmp_path / "models")


def test_without_lm_studio_its_folder_has_to_be_named(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))

    assert "LM Studio was not found" in refusal(tmp_path, adapter, lmstudio=True)
    (tmp_path / "home" / ".lmstudio").mkdir(parents=True)
    assert exported(tmp_path, adapter, lmstudio=True).lmstudio == str(tmp_path / "home" / ".lmstudio" / "models")


@pytest.mark.parametrize(
    ("text", "name"),
    [("My model/v2", "My-model-v2"), ("../..", "model"), ("", "model"), ("a.b-c_d+e", "a.b-c_d+e"), ("世界", "世界")],
)
def test_any_text_makes_a_name_for_files(text: str, name: str) -> None:
    assert file_name(text) == name
    assert os.path.basename(file_name(text)) == file_name(text)


# --- as part of a training ------------------------------------------------------------------------------------------


def training(tmp_path: Path, **given: object) -> RunSpec:
    (tmp_path / "data.jsonl").write_text('{"text": "hello"}\n')
    return build_spec(settings(tmp_path, data=tmp_path / "data.jsonl", backend="toy", model="owner/name", **given))


def test_a_training_exports_nothing_unless_asked(tmp_path: Path) -> None:
    assert training(tmp_path).export is None


@pytest.mark.parametrize("value", [*FORMATS, *QUANTIZATIONS, "Q4_K_M"])
def test_a_training_can_end_with_any_format_or_quantization(tmp_path: Path, value: str) -> None:
    spec = training(tmp_path, export=value)

    assert spec.kind == "train"
    assert spec.export is not None
    assert value.lower() in (spec.export.format, spec.export.quantization)
    assert spec.export.adapter is None
    assert spec.export.name == f"name-{spec.run_id[:8]}"
    assert spec.export.destination == str(tmp_path / "out" / "exports" / spec.run_id[:8])


def test_a_name_for_ollama_alone_makes_a_training_end_with_a_gguf(tmp_path: Path) -> None:
    spec = training(tmp_path, ollama_name="mine").export

    assert spec is not None
    assert (spec.format, spec.quantization, spec.ollama_name) == ("gguf", "q4_k_m", "mine")


@pytest.mark.parametrize(
    "given",
    [
        {"export": "q5"},
        {"export": "merged", "ollama_name": "mine"},
        {"export": "q8_0", "quantization": "f16"},
        {"export": "q8_0", "ollama_name": "not a name"},
        {"export": "q8_0", "export_dir": "data.jsonl"},
    ],
    ids=str,
)
def test_a_wrong_export_is_refused_before_the_training(
    tmp_path: Path, given: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackpropagateError) as caught:
        training(tmp_path, **given)

    assert int(caught.value.exit_code) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
