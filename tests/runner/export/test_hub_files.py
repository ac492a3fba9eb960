"""A hub's model is fetched by its own client, only what an export needs of it, with signs of progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.doubles.http_double import Double, Handler
from tests.house.source import ROOT

COMMIT = "a" * 40
TINY = ROOT / "fixtures" / "tiny-base"


class _Handler(Handler):
    double: Hub

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.double.requests.append(f"{self.command} {path}")
        if path.startswith("/api/models/me/mine"):
            self.answer(200, self.double.about())
            return
        name = path.removeprefix("/me/mine/resolve/").partition("/")[2]
        content = self.double.files.get(name)
        if content is None:
            self.answer(404, {"error": "none"}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        if self.command == "GET" and name == self.double.broken:
            self.hang_up()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


class Hub(Double):
    """One model, `me/mine`. `broken`: the file whose download is cut."""

    handler = _Handler

    def __init__(self, files: dict[str, bytes], broken: str = "") -> None:
        self.files, self.broken = files, broken
        super().__init__()

    def about(self) -> dict[str, object]:
        siblings = [{"rfilename": name, "size": len(data), "blobId": "0"} for name, data in self.files.items()]
        counts = {"parameters": {"BF16": 123}, "total": 123}
        return {"id": "me/mine", "modelId": "me/mine", "sha": COMMIT, "siblings": siblings, "safetensors": counts}

    @property
    def downloads(self) -> set[str]:
        return {path.rpartition("/")[2] for path in self.requests if path.startswith("GET /me/")}


PROGRAM = """
import json, sys
from backpropagate_protocol.errors import BackpropagateError
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.export.model_files import open_model

signs = []
try:
    files = open_model(ModelSpec(name="mine", path="me/mine"), lambda *sign: signs.append(sign), weights=sys.argv[1] == "all")
except BackpropagateError as error:
    print(json.dumps({"code": error.code, "message": error.message}))
else:
    print(json.dumps({
        "commit": files.commit, "parameters": files.parameters, "bytes": files.weight_bytes, "tensors": len(files.tensors),
        "side": sorted(files.side_files()), "signs": signs,
    }))
"""


def opened(home: Path, endpoint: str, what: str) -> dict[str, object]:
    """What `open_model` finds in a process of its own: the hub's client reads its settings when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture
def files() -> dict[str, bytes]:
    kept = {path.name: path.read_bytes() for path in TINY.iterdir()}
    return kept | dict.fromkeys(("pytorch_model.bin", "consolidated.safetensors", "evil.py", "m.gguf"), b"junk")


@pytest.mark.slow
def test_only_what_an_export_needs_is_fetched_and_then_found_without_the_hub(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    with Hub(files) as hub:
        small = opened(tmp_path, hub.url, "small")
        assert "model.safetensors" not in hub.downloads
        assert (small["parameters"], small["tensors"]) == (123, 0)
        assert small["bytes"] == len(files["model.safetensors"])
        whole = opened(tmp_path, hub.url, "all")
        assert hub.downloads == {path.name for path in TINY.iterdir()} - {"README.md"}
    assert whole["commit"] == COMMIT
    assert whole["tensors"]
    assert whole["side"] == small["side"]
    signs = whole["signs"]
    assert isinstance(signs, list)
    assert signs[-1][0] == signs[-1][1]
    assert signs[-1][2] == "model.safetensors"
    offline = opened(tmp_path, hub.url, "all")  # nobody listens there any more
    assert {**offline, "signs": []} == {**whole, "signs": []}


@pytest.mark.slow
def test_a_download_that_is_cut_is_the_hubs_fault(files: dict[str, bytes], tmp_path: Path) -> None:
    with Hub(files, broken="model.safetensors") as hub:
        found = opened(tmp_path, hub.url, "all")
    assert found["code"] == "DEP_HUB_UNREACHABLE"
    assert "model.safetensors of mine" in str(found["message"])
