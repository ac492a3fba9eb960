"""Which files of a folder are the model that is pushed: no less than it needs, nothing that is somebody's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from backpropagate_protocol.errors import BackpropagateError, UserInputError
from backpropagate_protocol.jobs import PushJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.spec import PushSpec
from backpropagate_runner.export.push import push
from backpropagate_runner.export.push_files import choose
from tests.runner.export.heard import Heard
from tests.runner.export.pushed import CARD, SAFETENSORS, filled, gguf
from tests.runner.export.test_adapter import finished, lora_adapter


def chosen(folder: Path, card: str = "", only: tuple[str, ...] = ()) -> list[str]:
    return [file.name for file in choose(folder, card, only).files]


def test_one_gguf_file_can_be_pushed_by_itself(tmp_path: Path) -> None:
    assert chosen(gguf(tmp_path / "m-F16.gguf")) == ["m-F16.gguf"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = filled(tmp_path / "adapter")
    (tmp_path / "secret").write_text("secret")
    try:
        (folder / "LICENSE").symlink_to(tmp_path / "secret")
    except OSError:
        pytest.skip("links need a privilege here")
    assert "LICENSE" not in chosen(folder)


def test_of_several_files_only_the_named_go(tmp_path: Path) -> None:
    for name in ("a-F16.gguf", "b-F16.gguf", "README.md", "notes.txt"):
        gguf(tmp_path / name)
    assert chosen(tmp_path, "", ("b-F16.gguf",)) == ["b-F16.gguf"]
    assert set(chosen(tmp_path, CARD, ("b-F16.gguf",))) == {"b-F16.gguf", "README.md"}
    for missing in ("c-F16.gguf", "notes.txt"):
        with pytest.raises(BackpropagateError, match=missing):
            choose(tmp_path, "", ("a-F16.gguf", missing))


def test_shards_and_their_index_belong_to_a_model(tmp_path: Path) -> None:
    names = {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    names |= {"model.safetensors.index.json"}
    for name in (*names, "model-1-of-2.safetensors"):
        (tmp_path / name).write_bytes(SAFETENSORS)
    assert set(chosen(tmp_path)) == names


def test_every_file_that_an_export_writes_for_a_model_goes_with_it(tmp_path: Path) -> None:
    names = {
        "vocab.txt", "qwen.tiktoken", "tekken.json", "spiece.model", "NOTICE.txt", "LICENSE-APACHE",
        "additional_chat_templates/tool_use.jinja", "modeling_x.py",
    }  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(SAFETENSORS)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}')
    assert set(chosen(tmp_path)) == names | {"config.json", "model.safetensors"}
    (tmp_path / "config.json").write_text("{}")  # programs that no model asks for are somebody's own
    choice = choose(tmp_path, "")
    assert choice.left_out == ("modeling_x.py",)


def test_quantizations_of_one_model_go_together_and_its_adapter_stays(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M.gguf", "m-F16.gguf"):
        gguf(tmp_path / name)
    gguf(tmp_path / "m-lora-F16.gguf", "adapter")
    (tmp_path / "m-merged").mkdir()
    (tmp_path / "m-F16.gguf.export.json").write_text("{}")
    choice = choose(tmp_path, "")
    assert {file.name for file in choice.files} == {"m-Q4_K_M.gguf", "m-F16.gguf"}
    assert choice.left_out == ("m-lora-F16.gguf", "m-merged/")
    assert chosen(tmp_path, "", ("m-lora-F16.gguf",)) == ["m-lora-F16.gguf"]


def test_two_models_are_not_pushed_as_one(tmp_path: Path) -> None:
    for name in ("one-Q4_K_M.gguf", "other-Q4_K_M.gguf"):
        gguf(tmp_path / name)
    with pytest.raises(UserInputError, match="2 models: one, other"):
        choose(tmp_path, "")


@pytest.mark.parametrize("name", ["m-F16.gguf", "model.safetensors"])
@pytest.mark.parametrize("size", [0, 40])
def test_a_file_without_its_end_is_not_pushed_also_in_a_dry_run(tmp_path: Path, name: str, size: int) -> None:
    path = tmp_path / name
    if name.endswith(".gguf"):
        gguf(path)
    else:
        path.write_bytes(SAFETENSORS)
    path.write_bytes(path.read_bytes()[:size])
    spec = PushSpec(folder=str(tmp_path), repo="me/m", dry_run=True)
    with pytest.raises(UserInputError, match=name):
        push(PushJob(push=spec), Heard(Phase.PUSH).stage)


def test_an_adapter_that_is_not_what_its_training_wrote_is_not_pushed(tmp_path: Path) -> None:
    folder = finished(lora_adapter(tmp_path / "a"), tmp_path / "adapter")
    assert "adapter_model.safetensors" in chosen(folder)
    with open(folder / "adapter_model.safetensors", "r+b") as file:
        file.seek(-2, 2)
        file.write(b"!!")
    with pytest.raises(UserInputError, match="other content") as told:
        choose(folder, "")
    assert told.value.code == "INPUT_ADAPTER_INVALID"
