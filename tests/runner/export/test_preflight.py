"""What is missing is found before a weight is read: each piece of the chain taken away, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

import backpropagate_backends
import backpropagate_protocol
import backpropagate_runner
from backpropagate_backends.host_memory import free_host_memory
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.jobs import PreflightJob
from backpropagate_protocol.messages import Done, ExportRoute, Fault, FaultKind, Phase
from backpropagate_protocol.reference import MAX_ROWS
from backpropagate_protocol.spec import ExportSpec, ModelSpec
from backpropagate_runner.export.preflight import preflight
from backpropagate_runner.export.room import free_bytes
from backpropagate_runner.export.sizes import of_merged, reference_bytes
from tests.doubles.ollama_server import OllamaDouble
from tests.house.source import ROOT
from tests.runner.child import Child
from tests.runner.export.heard import Heard
from tests.runner.export.hollow import hollow_model, lora_adapter


@dataclass
class Asked:
    """An export of a model without weights; `wish` changes it."""

    home: Path
    model: dict[str, object] = field(default_factory=dict)

    def job(
        self, *, adapter: Path | None = None, dora: bool = False, full: bool = False, **wish: object
    ) -> PreflightJob:
        folder = self.home / "base"
        if not folder.exists():
            hollow_model(folder, **self.model)  # type: ignore[arg-type]
        export = ExportSpec(format="gguf", quantization="q8_0", destination=str(self.home / "out"), name="mine")
        return PreflightJob(
            model=ModelSpec(name="base", path=str(folder)),
            export=msgspec.structs.replace(export, **wish),
            adapter=str(adapter) if adapter else None,
            work=str(self.home / "out" / ".export-1234.partial"),
            dora=dora,
            full=full,
        )

    def route(self, **wish: object) -> ExportRoute:
        return preflight(self.job(**wish), Heard(Phase.PREFLIGHT).stage)  # type: ignore[arg-type]

    def refusal(self, **wish: object) -> BackpropagateError:
        with pytest.raises(BackpropagateError) as caught:
            self.route(**wish)
        assert not (self.home / "out").exists()
        return caught.value


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path)


def test_a_q8_0_is_written_by_the_converter_alone(asked: Asked) -> None:
    route = asked.route()
    assert (route.architecture, route.parameters) == ("Qwen2ForCausalLM", 2_000_000)
    assert (route.converter, route.type, route.quantizer) == ("own", "q8_0", "")
    vocabulary = json.loads((asked.home / "base" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert route.work_bytes - route.bytes == reference_bytes({"vocab_size": vocabulary}, 12)


def test_the_rows_of_two_references_lie_beside_a_merged_model() -> None:
    large = {"vocab_size": 152_000}
    rows = reference_bytes(large, 8)
    assert rows == 8 * MAX_ROWS * 152_000 * 4
    assert reference_bytes({"text_config": large}, 8) == rows
    assert of_merged(1000, "F32", rows).work - of_merged(1000, "F32", rows).result == 2 * rows


def test_a_file_that_fits_is_run_though_the_model_that_it_was_made_of_would_not(tmp_path: Path) -> None:
    """Its weights are mapped. In bfloat16 they would take all the memory that is free, as q8_0 they take half of it."""
    parameters = free_host_memory() // 2
    if free_bytes(tmp_path) < parameters * 1.5:  # type: ignore[operator]
        pytest.skip("the disk is smaller than the memory")
    route = Asked(tmp_path, {"parameters": parameters}).route(quantization="q8_0")
    assert (route.verifier, route.notes) == ("llama", ())
    nothing = Asked(tmp_path / "larger", {"parameters": parameters * 2}).route(quantization="q8_0")
    assert nothing.verifier == "weights"
    assert "are free" in nothing.notes[0]


@pytest.mark.parametrize(("dtype", "between"), [("BF16", "bf16"), ("F16", "f16"), ("F32", "f16")])
def test_a_k_quantization_goes_through_the_bits_that_the_base_has(tmp_path: Path, dtype: str, between: str) -> None:
    route = Asked(tmp_path, {"dtype": dtype}).route(quantization="q5_k_m")
    assert (route.type, route.quantizer, route.verifier) == (between, "llama", "llama")
    assert route.work_bytes > route.bytes + 2 * 2_000_000


def test_an_adapter_alone_needs_neither_converter_nor_room_for_the_model(tmp_path: Path) -> None:
    route = Asked(tmp_path, {"parameters": 1_000_000_000}).route(format="lora", quantization=None)
    assert (route.converter, route.type, route.bytes) == ("", "", 0)


def test_an_architecture_that_nobody_here_converts_names_both_ways_to_the_official_converter(tmp_path: Path) -> None:
    asked = Asked(tmp_path, {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"})
    error = asked.refusal(converter_folder=str(tmp_path / "nothing"))
    assert error.code == "DEP_EXPORT_TOOL_MISSING"
    assert "GemmaForCausalLM" in error.message
    assert "backprop setup --converter" in error.suggestion
    assert "LLAMA_CPP_DIR" in error.suggestion


def converter(folder: Path, *architectures: str) -> Path:
    """A folder that looks like llama.cpp's own converter as far as it is looked at before it is run."""
    for name in ("convert_hf_to_gguf.py", "conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("", encoding="utf-8")
    known = "\n".join(f'ModelBase.register("{name}")' for name in architectures)
    (folder / "conversion" / "some.py").write_text(known, encoding="utf-8")
    return folder


def test_the_official_converter_is_taken_for_what_ours_does_not_cover(tmp_path: Path) -> None:
    folder = converter(tmp_path / "llama.cpp", "GemmaForCausalLM")
    asked = Asked(tmp_path, {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"})
    route = asked.route(converter_folder=str(folder))
    assert (route.converter, route.converter_folder) == ("official", str(folder))
    assert route.notes == ()


def test_what_can_be_neither_run_nor_read_is_told_before_the_training(tmp_path: Path, without: dict[str, Path]) -> None:
    folder = converter(tmp_path / "llama.cpp", "GemmaForCausalLM")
    asked = Asked(tmp_path, {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"})
    route = told(asked.job(converter_folder=str(folder)), without["llama_cpp"], tmp_path / "log")
    assert isinstance(route, ExportRoute), route
    assert route.verifier == "weights"
    assert "not the weights" in route.notes[-1]


def test_an_architecture_that_the_official_converter_does_not_know_either_can_be_merged(tmp_path: Path) -> None:
    folder = converter(tmp_path / "llama.cpp", "GemmaForCausalLM")
    asked = Asked(tmp_path, {"architectures": ["AbacusForCausalLM"]})
    error = asked.refusal(converter_folder=str(folder))
    assert error.code == "INPUT_MODEL_UNSUPPORTED"
    assert "--format merged" in error.suggestion
    assert asked.route(format="merged", quantization=None).architecture == "AbacusForCausalLM"


def test_a_base_that_is_quantized_is_not_exported_over_its_dequantised_weights(tmp_path: Path) -> None:
    asked = Asked(tmp_path, {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert asked.refusal().code == "INPUT_MODEL_UNSUPPORTED"
    assert asked.route(format="lora", quantization=None).bytes == 0


def test_a_model_that_was_held_in_4_bit_is_said_to_be_exported_over_full_precision(asked: Asked) -> None:
    job = asked.job()
    job = msgspec.structs.replace(job, model=msgspec.structs.replace(job.model, load_in_4bit=True))
    (note,) = preflight(job, Heard(Phase.PREFLIGHT).stage).notes
    assert "full-precision" in note


def test_a_model_without_a_chat_template_is_told(asked: Asked) -> None:
    job = asked.job()
    (asked.home / "base" / "chat_template.jinja").unlink()
    (note,) = preflight(job, Heard(Phase.PREFLIGHT).stage).notes
    assert "no chat template" in note


@pytest.mark.parametrize("wanted", ["lora-gguf"])
def test_a_dora_adapter_is_merged_not_converted(asked: Asked, wanted: str) -> None:
    for_it = lora_adapter(asked.home / "dora", use_dora=True)
    found = asked.refusal(adapter=for_it, format=wanted, quantization=None)
    planned = asked.refusal(dora=True, format=wanted, quantization=None)
    assert {found.code, planned.code} == {"INPUT_ADAPTER_UNSUPPORTED"}
    assert "gguf or merged" in planned.suggestion
    assert asked.route(adapter=for_it).converter == "own"


@pytest.mark.parametrize("wanted", ["lora", "lora-gguf"])
def test_a_full_fine_tune_has_no_adapter_to_export(asked: Asked, wanted: str) -> None:
    assert asked.refusal(full=True, format=wanted, quantization=None).code == "INPUT_ADAPTER_UNSUPPORTED"


def test_a_folder_that_holds_no_adapter_is_named(asked: Asked) -> None:
    error = asked.refusal(adapter=asked.home)
    assert error.code == "INPUT_ADAPTER_INVALID"
    assert str(asked.home) in error.message


@pytest.mark.skipif(sys.platform != "linux", reason="a file with a hole of that size")
@pytest.mark.parametrize("wanted", ["gguf", "merged"])
def test_a_disk_that_cannot_take_the_result_is_told_with_both_numbers(tmp_path: Path, wanted: str) -> None:
    asked = Asked(tmp_path, {"parameters": 4_000_000_000_000})
    error = asked.refusal(format=wanted, quantization="f16" if wanted == "gguf" else None)
    assert error.code == "RUNTIME_DISK_FULL"
    assert "8,000,03" in error.message  # 8 TB and what lies beside
    assert "MB free" in error.message


def test_a_destination_that_is_a_file_is_refused(asked: Asked) -> None:
    (asked.home / "taken").write_text("")
    assert asked.refusal(destination=str(asked.home / "taken" / "deep")).code == "CONFIG_OUTPUT_UNWRITABLE"


@pytest.mark.parametrize(("wish", "word"), [({"format": "onnx"}, "onnx"), ({"quantization": "q9"}, "q9")])
def test_a_word_that_nobody_knows_is_refused_with_those_that_are_known(
    asked: Asked, wish: dict[str, str], word: str
) -> None:
    error = asked.refusal(**wish)
    assert error.code == "CONFIG_INVALID_SETTING"
    assert word in error.message
    assert "Choose one of" in error.suggestion


# --- Ollama -------------------------------------------------------------------------------------------------------------


def test_a_server_that_answers_is_asked_for_its_version_only(asked: Asked) -> None:
    with OllamaDouble() as ollama:
        route = asked.route(ollama_name="mine", ollama_host=ollama.url)
        assert route.ollama_version == ollama.version
        assert ollama.requests == ["GET /api/version"]


def test_nobody_is_asked_about_a_name_that_ollama_would_not_take(asked: Asked) -> None:
    with OllamaDouble() as ollama:
        error = asked.refusal(ollama_name="no spaces please", ollama_host=ollama.url)
        assert ollama.requests == []
    assert error.code == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert "--ollama-name" in error.suggestion


def test_a_server_that_is_down_fails_before_the_model_is_looked_at(asked: Asked) -> None:
    with OllamaDouble() as ollama:
        url = ollama.url
    job = msgspec.structs.replace(asked.job(ollama_name="mine", ollama_host=url), model=ModelSpec(name="x", path="/x"))
    with pytest.raises(BackpropagateError) as caught:
        preflight(job, Heard(Phase.PREFLIGHT).stage)
    assert caught.value.code == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert "ollama serve" in caught.value.suggestion


def test_a_server_that_is_too_old_is_told_which_version_it_takes(asked: Asked) -> None:
    with OllamaDouble(version="0.1.30") as ollama:
        error = asked.refusal(ollama_name="mine", ollama_host=ollama.url)
    assert error.code == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert "0.1.30" in error.message


def test_ollama_gets_whole_models_only(asked: Asked) -> None:
    assert asked.refusal(format="merged", quantization=None, ollama_name="mine").code == "CONFIG_INVALID_SETTING"


# --- in a child that lacks a package ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each tool, a folder that stands in for site-packages and has all of it but that tool."""
    if sys.platform == "win32":
        pytest.skip("symbolic links need a privilege there")
    ours = [
        Path(str(module.__file__)).parent
        for module in (backpropagate_protocol, backpropagate_backends, backpropagate_runner)
    ]
    made = {}
    for missing in ("gguf", "llama_cpp"):
        made[missing] = folder = tmp_path_factory.mktemp(f"without-{missing}")
        for path in (*Path(sysconfig.get_paths()["purelib"]).iterdir(), *ours):
            if path.name != missing and path.suffix != ".pth" and not (folder / path.name).exists():
                os.symlink(path, folder / path.name)
    return made


def told(job: PreflightJob, light: Path, log: Path) -> ExportRoute | Fault:
    with Child(log, warm="none", light=light) as child:
        child.do(job)
        last = child.finish()
    if isinstance(last, Done) and isinstance(last.result, ExportRoute):
        return last.result
    assert isinstance(last, Fault), (last, log.read_text())
    return last


def test_without_gguf_it_says_what_to_install(asked: Asked, without: dict[str, Path]) -> None:
    fault = told(asked.job(), without["gguf"], asked.home / "log")
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.code) == (FaultKind.USER, "DEP_EXPORT_TOOL_MISSING")
    assert "pip install gguf" in fault.suggestion


def test_without_llama_cpp_the_other_ways_are_named(asked: Asked, without: dict[str, Path]) -> None:
    job = asked.job(quantization="q4_k_m")
    fault = told(job, without["llama_cpp"], asked.home / "log")
    assert isinstance(fault, Fault)
    assert fault.code == "DEP_EXPORT_TOOL_MISSING"
    for way in ("pip install 'backpropagate[export]'", "q8_0", "--ollama-name", "--format merged"):
        assert way in fault.suggestion


def test_without_llama_cpp_ollama_quantizes_what_it_can(asked: Asked, without: dict[str, Path]) -> None:
    with OllamaDouble() as ollama:
        job = asked.job(quantization="q4_k_m", ollama_name="mine", ollama_host=ollama.url)
        route = told(job, without["llama_cpp"], asked.home / "log")
        rare = told(
            msgspec.structs.replace(job, export=msgspec.structs.replace(job.export, quantization="q5_k_m")),
            without["llama_cpp"],
            asked.home / "log",
        )
    assert isinstance(route, ExportRoute), route
    assert (route.type, route.quantizer, route.verifier) == ("bf16", "ollama", "weights")
    assert any("read, not run" in note for note in route.notes)
    assert isinstance(rare, Fault)
    assert "--ollama-name" not in rare.suggestion


def test_without_llama_cpp_a_q8_0_is_proved_by_reading_it(asked: Asked, without: dict[str, Path]) -> None:
    route = told(asked.job(), without["llama_cpp"], asked.home / "log")
    assert isinstance(route, ExportRoute), route
    assert (route.type, route.quantizer, route.verifier) == ("q8_0", "", "weights")


def test_no_framework_is_loaded_to_find_out(asked: Asked) -> None:
    """Seconds, not the minute that importing torch takes on a busy machine."""
    program = (
        "import sys, msgspec\n"
        "from backpropagate_protocol.jobs import PreflightJob\n"
        "from backpropagate_protocol.messages import Phase\n"
        "from backpropagate_runner.export.preflight import preflight\n"
        "from tests.runner.export.heard import Heard\n"
        "preflight(msgspec.json.decode(sys.argv[1], type=PreflightJob), Heard(Phase.PREFLIGHT).stage)\n"
        "print(*(name for name in ('torch', 'transformers', 'peft', 'datasets') if name in sys.modules))\n"
    )
    command = [sys.executable, "-c", program, msgspec.json.encode(asked.job()).decode()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
