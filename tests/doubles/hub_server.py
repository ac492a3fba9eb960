"""A model hub as far as pushing goes, over real HTTP: what huggingface_hub's client asks of `HF_ENDPOINT`, xet turned off.

Read from huggingface_hub 2.4.0 (hf_api.py, _commit_api.py, lfs.py) and the git-lfs batch document: whoami, create repo,
model info, create branch, validate-yaml, preupload, LFS batch, PUT of an object, verify, commit as NDJSON. A write without
the right token is 401, to another's namespace 403; a commit may name only objects that were uploaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

from tests.doubles.http_double import Double, Handler

_BRANCH = re.compile(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)")
_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)")
_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch")
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_LARGE = (".safetensors", ".gguf", ".bin")


@dataclass
class Repo:
    """A repository: its branches' files, by name."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    messages: list[str] = field(default_factory=list)
    commits: int = 0


@dataclass
class Faults:
    """What goes wrong."""

    create: tuple[int, str] = (0, "")  # the answer to creating a repository
    commit: tuple[int, str] = (0, "")  # the answer to a commit
    cut_objects: int = 0  # uploads whose connection is cut, counting down
    echo_token: bool = False  # an error of the server's repeats what it was sent


class _Handler(Handler):
    double: HubDouble

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = urlsplit(self.path).path
        self.double.requests.append(f"{self.command} {path}")
        if self.command == "PUT" and path.startswith("/objects/"):
            self._object(path.removeprefix("/objects/"))
            return
        body = self.body()
        given = self.headers.get("Authorization", "")
        if path != "/api/validate-yaml" and given != f"Bearer {self.double.token}":
            echo = f"; got {given}" if self.double.faults.echo_token else ""
            self._refuse(401, f"Invalid username or password.{echo}")
            return
        for pattern, action in (
            (_BRANCH, self._branch),
            (_PREUPLOAD, self._preupload),
            (_COMMIT, self._commit),
            (_BATCH, self._batch),
            (_INFO, self._info),
        ):
            found = pattern.fullmatch(path)
            if found:
                action(found[1], unquote(found[2] or "main") if pattern.groups > 1 else "main", body)
                return
        match path:
            case "/api/whoami-v2":
                self.answer(200, {"name": self.double.user, "type": "user", "orgs": []})
            case "/api/repos/create":
                self._create(json.loads(body))
            case "/api/validate-yaml":
                self._yaml(str(json.loads(body)["content"]))
            case "/verify":
                self.answer(200, {})
            case _:
                self._refuse(404, "Not Found")

    def _refuse(self, status: int, said: str, code: str = "") -> None:
        self.answer(status, {"error": said}, {"X-Error-Message": said, **({"X-Error-Code": code} if code else {})})

    def _repo(self, name: str) -> Repo | None:
        found = self.double.repos.get(name)
        if found is None:
            self._refuse(404, "Repository not found", "RepoNotFound")
        return found

    def _create(self, wanted: dict[str, str]) -> None:
        status, said = self.double.faults.create
        if status:
            self._refuse(status, said)
            return
        owner = wanted.get("organization") or self.double.user
        name = f"{owner}/{wanted['name']}"
        if owner != self.double.user:
            self._refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
            return
        if name in self.double.repos:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.double.url}/{name}"})
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.double.repos[name] = Repo(private=private)
        self.answer(200, {"url": f"{self.double.url}/{name}"})

    def _yaml(self, content: str) -> None:
        if content.startswith("---\n") and "\n---" in content[4:]:
            self.answer(200, {"warnings": [], "errors": []})
        else:
            self.answer(400, {"warnings": [], "errors": [{"message": "no metadata"}]})

    def _info(self, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(name)
        if repo is not None:
            self.answer(200, {"id": name, "private": repo.private, "sha": _sha(repo), "siblings": [], "tags": []})

    def _branch(self, name: str, branch: str, body: bytes) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        known = branch in repo.branches
        repo.branches.setdefault(branch, dict(repo.branches["main"]))
        self.answer(409 if known else 200, {"error": "Reference already exists"} if known else {})

    def _preupload(self, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        if revision not in repo.branches:
            self._refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return
        answers = []
        for file in json.loads(body)["files"]:
            base64.b64decode(file["sample"], validate=True)
            mode = "lfs" if file["path"].endswith(_LARGE) else "regular"
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None})
        self.answer(200, {"files": answers})

    def _batch(self, name: str, revision: str, body: bytes) -> None:
        if self._repo(name) is None:
            return
        answers: list[dict[str, object]] = []
        for wanted in json.loads(body)["objects"]:
            answer: dict[str, object] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.double.objects:
                answer["actions"] = {
                    "upload": {"href": f"{self.double.url}/objects/{wanted['oid']}"},
                    "verify": {"href": f"{self.double.url}/verify"},
                }
            answers.append(answer)
        self.answer(200, {"transfer": "basic", "objects": answers})

    def _object(self, oid: str) -> None:
        faults = self.double.faults
        if faults.cut_objects:
            faults.cut_objects -= 1
            self.hang_up()
            return
        content = self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            self._refuse(400, "the content is not what its name says")
            return
        self.double.objects[oid] = content
        self.answer(200)

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        status, said = self.double.faults.commit
        if status:
            self._refuse(status, said)
            return
        files = repo.branches[revision]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                repo.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] in self.double.objects:
                files[value["path"]] = self.double.objects[value["oid"]]
            else:
                self._refuse(400, f"the object of {value['path']} was not uploaded")
                return
        repo.commits += 1
        self.answer(200, {"commitUrl": f"{self.double.url}/{name}/commit/{_sha(repo)}", "commitOid": _sha(repo)})


def _sha(repo: Repo) -> str:
    return hashlib.sha1(f"commit {repo.commits}".encode()).hexdigest()


class HubDouble(Double):
    """The hub. `user` is whose `token` it is; `repos` by owner/name; `objects` what was uploaded, by SHA-256."""

    handler = _Handler

    def __init__(self, user: str = "me", token: str = "hf_" + "x" * 34) -> None:
        super().__init__()
        self.user, self.token = user, token
        self.faults = Faults()
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}


@contextmanager
def client_settings(home: Path) -> Iterator[None]:
    """The hub's client in this process as HF_HUB_DISABLE_XET=1 and HF_TOKEN_PATH make it; it reads them when imported."""
    before = constants.HF_HUB_DISABLE_XET, constants.HF_TOKEN_PATH
    constants.HF_HUB_DISABLE_XET, constants.HF_TOKEN_PATH = True, str(home / "no-login")
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET, constants.HF_TOKEN_PATH = before
