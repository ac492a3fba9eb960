"""Pushing to a hub over real HTTP, through the hub's own client: what goes, what stays, and where the token never appears."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.framing import encode
from backpropagate_protocol.jobs import PushJob
from backpropagate_protocol.messages import Done, Fault, Phase, Pushed
from backpropagate_protocol.spec import PushSpec
from backpropagate_runner.export.push import push
from backpropagate_runner.export.push_errors import check_repo, without
from tests.doubles.http_double import unused_port
from tests.doubles.hub_server import HubDouble, client_settings
from tests.runner.child import Child
from tests.runner.export.heard import Heard
from tests.runner.export.pushed import CARD, PUSHED, filled, gguf

# Of the hub's client, about its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No login of this machine's, and the plain upload protocol."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with client_settings(tmp_path):
        yield


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    with HubDouble() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return filled(tmp_path / "adapter")


def _push(
    hub: HubDouble, folder: Path, heard: Heard | None = None, **more: str | bool | tuple[str, ...] | None
) -> Pushed:
    token = folder.parent / "my-token"
    token.write_text(f"{hub.token}\n", encoding="utf-8")
    spec = PushSpec(folder=str(folder), repo="me/my-model", token_file=str(token))
    spec = msgspec.structs.replace(spec, **more)
    return push(PushJob(push=spec), (heard or Heard(Phase.PUSH)).stage, hub.url)


def _error(hub: HubDouble, folder: Path, **more: str | None) -> BackpropagateError:
    with pytest.raises(BackpropagateError) as told:
        _push(hub, folder, None, **more)
    return told.value


def test_exactly_the_files_of_the_model_go_to_a_private_repository(hub: HubDouble, folder: Path) -> None:
    heard = Heard(Phase.PUSH)
    pushed = _push(hub, folder, heard, message="First")
    repo = hub.repos["me/my-model"]
    assert repo.branches["main"] == PUSHED
    assert repo.private
    assert repo.messages == ["First"]
    assert pushed.url == f"{hub.url}/me/my-model"
    assert len(pushed.commit) == 40
    assert dict(pushed.files) == {name: len(content) for name, content in PUSHED.items()}
    total = sum(map(len, PUSHED.values()))
    assert (heard.phases[-1].done, heard.phases[-1].total) == (total, total)
    (told,) = heard.notices
    assert all(name in told for name in ("runner.log", "token", "checkpoint-10/"))
    assert not any(name in told for name in ("manifest.json", "partial", "rejected", ".env"))


def test_a_card_takes_the_place_of_the_folders_own(hub: HubDouble, folder: Path) -> None:
    _push(hub, folder, card=CARD)
    assert hub.repos["me/my-model"].branches["main"]["README.md"] == CARD.encode()


def test_a_public_repository_is_public_only_when_asked(hub: HubDouble, folder: Path) -> None:
    _push(hub, folder, private=False)
    assert not hub.repos["me/my-model"].private


def test_a_private_push_to_a_public_repository_is_told(hub: HubDouble, folder: Path) -> None:
    _push(hub, folder, private=False)
    heard = Heard(Phase.PUSH)
    _push(hub, folder, heard)
    assert "is public" in heard.notices[-1]


def test_another_revision_is_made_if_it_is_not_there(hub: HubDouble, folder: Path) -> None:
    _push(hub, folder, revision="v1.0/rc")
    repo = hub.repos["me/my-model"]
    assert repo.branches["v1.0/rc"] == PUSHED
    assert repo.branches["main"] == {}
    _push(hub, folder, revision="v1.0/rc")


def test_what_has_been_uploaded_is_not_uploaded_twice(hub: HubDouble, folder: Path) -> None:
    _push(hub, folder)
    _push(hub, folder)
    assert sum(request.startswith("PUT") for request in hub.requests) == 1


def test_a_large_file_is_told_by_name_while_it_goes(hub: HubDouble, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    with open(gguf(folder / "m-Q4_K_M.gguf"), "ab") as file:
        file.write(bytes(9 << 20))
    heard = Heard(Phase.PUSH)
    _push(hub, folder, heard, card=CARD)
    assert set(hub.repos["me/my-model"].branches["main"]) == {"README.md", "m-Q4_K_M.gguf"}
    assert heard.signs >= 5
    assert heard.phases[-1].detail == "committed"


def test_a_dry_run_lists_files_and_asks_nobody(hub: HubDouble, folder: Path) -> None:
    spec = PushSpec(folder=str(folder), repo="me/my-model", dry_run=True, card=CARD)
    pushed = push(PushJob(push=spec), Heard(Phase.PUSH).stage, hub.url)
    assert dict(pushed.files)["README.md"] == len(CARD)
    assert {name for name, _ in pushed.files} == set(PUSHED)
    assert pushed.commit == ""
    assert hub.requests == []


@pytest.mark.parametrize("name", ["nothing", "adapter"])
def test_a_folder_with_nothing_to_push_is_told(tmp_path: Path, hub: HubDouble, name: str) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "config.json").write_bytes(b"{}")
    assert _error(hub, tmp_path / name).code == "INPUT_VALIDATION_FAILED"


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "repo", ["model", "a/b/c", "/m", "me/", "me/my model", "me/-m", "me/m.", "me/a--b", "me/m.git", "me/" + "m" * 99]
)
def test_a_repository_that_cannot_be_is_refused_before_anything(hub: HubDouble, folder: Path, repo: str) -> None:
    assert _error(hub, folder, repo=repo).code == "HUB_PUSH_INVALID_REPO"
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["me/m", "Me-1/my_model.v2", "me/7b-Q4_K_M"])
def test_a_repository_that_can_be_passes(repo: str) -> None:
    check_repo(repo)


def test_without_a_token_nobody_is_asked(hub: HubDouble, folder: Path) -> None:
    error = _error(hub, folder, token_file=None)
    assert error.code == "INPUT_AUTH_REQUIRED"
    assert "hf auth login" in error.suggestion
    assert hub.requests == []


def test_the_token_of_the_environment_is_found_by_the_client(
    hub: HubDouble, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert _push(hub, folder, token_file=None).commit


@pytest.mark.parametrize("content", [None, "", "two words", "\xff"])
def test_a_token_file_without_a_token_is_told_without_its_content(
    hub: HubDouble, folder: Path, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "other"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    error = _error(hub, folder, token_file=str(path))
    assert error.code == "INPUT_AUTH_REQUIRED"
    assert not content or content not in str(error)


def test_a_wrong_token_is_told(hub: HubDouble, folder: Path) -> None:
    with HubDouble(token="another") as other:
        other_token = folder.parent / "other"
        other_token.write_text(hub.token)
        assert _error(other, folder, token_file=str(other_token)).code == "INPUT_AUTH_REQUIRED"


def test_anothers_namespace_is_told(hub: HubDouble, folder: Path) -> None:
    error = _error(hub, folder, repo="you/model")
    assert error.code == "HUB_PUSH_NOT_FOUND"
    assert "rights" in error.message


def test_a_hub_that_is_not_there_can_be_asked_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("hf_" + "x" * 34)
    spec = PushSpec(folder=str(folder), repo="me/m", token_file=str(tmp_path / "t"))
    with pytest.raises(BackpropagateError) as told:
        push(PushJob(push=spec), Heard(Phase.PUSH).stage, f"http://127.0.0.1:{unused_port()}")
    assert told.value.code == "HUB_PUSH_NETWORK"
    assert told.value.retry == "later"


def test_a_hub_in_trouble_can_be_asked_again(hub: HubDouble, folder: Path) -> None:
    hub.faults.commit = (503, "try later")
    assert _error(hub, folder).code == "HUB_PUSH_NETWORK"
    hub.faults.commit = (0, "")
    _push(hub, folder)
    assert sum(request.startswith("PUT") for request in hub.requests) == 1


def test_a_refusal_is_told_in_the_hubs_words(hub: HubDouble, folder: Path) -> None:
    hub.faults.commit = (413, "Private storage is full")
    error = _error(hub, folder)
    assert error.code == "HUB_PUSH_FAILED"
    assert "Private storage is full" in error.message


def test_a_card_that_the_hub_cannot_read_is_told_before_the_upload(hub: HubDouble, folder: Path) -> None:
    assert "README" in _error(hub, folder, card="no metadata").message
    assert not hub.objects


# --- the token ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["hf_" + "s" * 34, "odd-token-of-a-company"])
def test_an_error_that_repeats_the_token_is_told_without_it(folder: Path, token: str) -> None:
    with HubDouble(token="what the hub wants") as hub:
        hub.faults.echo_token = True
        (folder.parent / "t").write_text(token)
        error = _error(hub, folder, token_file=str(folder.parent / "t"))
    assert "got Bearer" in error.message
    assert token not in error.message
    assert error.__suppress_context__


def test_a_token_of_any_shape_is_taken_out() -> None:
    assert without("odd-token", "it was odd-token") == "it was [redacted]"
    assert without(None, "it was hf_abcdefghijkl") == "it was [redacted]"


@pytest.mark.slow
@pytest.mark.parametrize("good", [True, False])
def test_a_real_child_never_says_the_token(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: bool
) -> None:
    token = "hf_" + "Secret" * 6
    with HubDouble(token=token if good else "other") as hub:
        hub.faults.echo_token = True
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        log = tmp_path / "runner.log"
        with Child(log, warm="none") as child:
            child.do(PushJob(push=PushSpec(folder=str(folder), repo="me/m", card=CARD)))
            last = child.finish()
    assert isinstance(last, Done if good else Fault)
    assert b"[redacted]" in encode(last) or good
    assert token.encode() not in b"".join(map(encode, child.said)) + log.read_bytes()
    assert isinstance(child.process.args, list)
    assert token not in json.dumps([str(part) for part in child.process.args])
