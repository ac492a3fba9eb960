"""What goes to the hub, and every wish that is refused before anything is sent or written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backpropagate.wishes.push_run import PushWish, push_run
from backpropagate.wishes.settings import Settings
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.spec import PushSpec


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of an adapter, on a machine without a token."""
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def pushed(tmp_path: Path, what: Path | str, **given: object) -> PushSpec:
    wishes: dict[str, object] = {"repo": "me/my-model", "dry_run": True, **given}
    settings = Settings({"output_dir": tmp_path / "out"}, environ={}, folder=tmp_path)
    spec = push_run(settings, str(what), PushWish(**wishes))  # type: ignore[arg-type]  # as written in each test
    assert spec.kind == "push"
    assert spec.push is not None
    return spec.push


def refusal(tmp_path: Path, what: Path | str, **given: object) -> str:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BackpropagateError) as caught:
        pushed(tmp_path, what, **given)
    assert sorted(tmp_path.rglob("*")) == before
    assert caught.value.suggestion
    return caught.value.code


def test_an_adapter_goes_up_privately_and_with_a_card(tmp_path: Path, adapter: Path) -> None:
    spec = pushed(tmp_path, adapter)

    assert (spec.folder, spec.files, spec.repo, spec.revision) == (str(adapter), (), "me/my-model", "main")
    assert spec.private
    assert spec.card.startswith("---\n")
    assert pushed(tmp_path, adapter, card=False).card == ""


def test_the_adapter_of_an_output_folder_is_found(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "home").mkdir()
    adapter.rename(tmp_path / "home" / "lora")

    assert pushed(tmp_path, tmp_path / "home").folder == str(tmp_path / "home" / "lora")


def test_of_a_folder_with_several_ggufs_only_the_named_one_goes_up(tmp_path: Path, adapter: Path) -> None:
    for name in ("a-Q4_K_M.gguf", "b-F16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    spec = pushed(tmp_path, tmp_path / "b-F16.gguf")

    assert (spec.folder, spec.files) == (str(tmp_path), ("b-F16.gguf",))


@pytest.mark.parametrize(
    "repo",
    [
        None,
        "",
        "name",
        "/name",
        "me/",
        "a/b/c",
        "me/-x",
        "me/x.",
        "me/a--b",
        "me/a..b",
        "me/ä b",
        "m/" + "x" * 99,
        "me/x.git",
    ],
)
def test_a_repository_that_cannot_be_is_refused(tmp_path: Path, adapter: Path, repo: str | None) -> None:
    assert refusal(tmp_path, adapter, repo=repo) == "HUB_PUSH_INVALID_REPO"


@pytest.mark.parametrize("revision", ["", "-x", "a b", "a/../b", "x.lock"])
def test_a_branch_that_cannot_be_is_refused(tmp_path: Path, adapter: Path, revision: str) -> None:
    assert refusal(tmp_path, adapter, revision=revision) == "INPUT_VALIDATION_FAILED"


def test_an_empty_message_is_refused(tmp_path: Path, adapter: Path) -> None:
    assert refusal(tmp_path, adapter, message=" ") == "INPUT_VALIDATION_FAILED"
    assert pushed(tmp_path, adapter, message=" better ").message == "better"


@pytest.mark.parametrize("content", [None, "", "  \n", "two words", "x" * 5000])
def test_a_token_file_holds_one_token(tmp_path: Path, adapter: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)

    assert refusal(tmp_path, adapter, token_file=str(tmp_path / "token")) == "INPUT_AUTH_REQUIRED"


def test_the_token_itself_is_nowhere_in_the_wish(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "token").write_text("hf_secret\n")
    spec = pushed(tmp_path, adapter, token_file=str(tmp_path / "token"))

    assert spec.token_file == str(tmp_path / "token")
    assert "hf_secret" not in repr(spec)


def test_without_any_token_nothing_is_begun(tmp_path: Path, adapter: Path) -> None:
    assert refusal(tmp_path, adapter, dry_run=False) == "INPUT_AUTH_REQUIRED"
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "token").write_text("hf_x")
    assert not pushed(tmp_path, adapter, dry_run=False).dry_run


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("", "INPUT_VALIDATION_FAILED"),
        ("nothing", "INPUT_RUN_NOT_FOUND"),
        ("latest", "INPUT_RUN_NOT_FOUND"),
        ("tiny", "INPUT_RUN_NOT_FOUND"),
    ],
)
def test_what_is_nothing_is_said_to_be_nothing(tmp_path: Path, adapter: Path, what: str, code: str) -> None:
    assert refusal(tmp_path, what) == code


def test_a_folder_without_a_model_and_a_file_that_is_no_gguf_are_refused(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")

    assert refusal(tmp_path, tmp_path / "empty") == "INPUT_VALIDATION_FAILED"
    assert refusal(tmp_path, tmp_path / "notes.txt") == "INPUT_VALIDATION_FAILED"
