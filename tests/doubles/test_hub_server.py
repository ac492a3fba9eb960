"""The hub double answers its real client as the hub does: who one is, repositories, branches, uploads, commits, refusals."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.doubles.hub_server import HubDouble, client_settings

# Of the hub's client, about its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubDouble]:
    with client_settings(tmp_path), HubDouble() as running:
        yield running


@pytest.fixture
def api(hub: HubDouble) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def test_a_token_is_somebodys(api: HfApi, hub: HubDouble) -> None:
    assert api.whoami()["name"] == "me"
    with pytest.raises(HfHubHTTPError) as told:
        HfApi(endpoint=hub.url, token="other").whoami()
    assert told.value.response.status_code == 401


def test_a_repository_is_made_once_and_is_as_private_as_was_said(api: HfApi, hub: HubDouble) -> None:
    assert api.create_repo("me/m", private=True) == f"{hub.url}/me/m"
    api.create_repo("me/m", exist_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.create_repo("me/m")
    assert api.model_info("me/m").private
    api.create_repo("me/open", private=False)
    assert not api.model_info("me/open").private


def test_what_is_not_there_is_404_and_what_is_anothers_403(api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("me/nothing")
    with pytest.raises(HfHubHTTPError) as told:
        api.create_repo("you/m")
    assert told.value.response.status_code == 403


def test_a_folder_is_uploaded_in_one_commit(api: HfApi, hub: HubDouble, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "b.json").write_bytes(b"{}")
    api.create_repo("me/m")
    info = api.upload_folder(repo_id="me/m", folder_path=tmp_path, commit_message="hello")
    repo = hub.repos["me/m"]
    assert repo.branches["main"] == {"a.safetensors": b"weights", "b.json": b"{}"}
    assert (repo.messages, repo.commits) == (["hello"], 1)
    assert len(info.oid) == 40
    assert list(hub.objects.values()) == [b"weights"]


def test_a_branch_has_to_be_made_before_it_is_written_to(api: HfApi, hub: HubDouble) -> None:
    api.create_repo("me/m")
    addition = CommitOperationAdd("a.json", io.BytesIO(b"{}"))
    with pytest.raises(RevisionNotFoundError):
        api.create_commit("me/m", [addition], commit_message="x", revision="dev")
    api.create_branch("me/m", branch="dev")
    api.create_branch("me/m", branch="dev", exist_ok=True)
    api.create_commit("me/m", [CommitOperationAdd("a.json", b"{}")], commit_message="x", revision="dev")
    assert hub.repos["me/m"].branches == {"main": {}, "dev": {"a.json": b"{}"}}


def test_a_card_needs_its_front_matter(api: HfApi) -> None:
    api.create_repo("me/m")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit("me/m", [CommitOperationAdd("README.md", b"text")], commit_message="x")
    api.create_commit("me/m", [CommitOperationAdd("README.md", b"---\nlicense: mit\n---\n")], commit_message="x")
