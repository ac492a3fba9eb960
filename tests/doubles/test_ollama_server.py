"""The Ollama double keeps the contract it was written from: raw requests, and the answers that the real server gives."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Iterator

import pytest

from tests.doubles.ollama_server import OllamaDouble, valid

_CONTENT = b"GGUF and so on"
_DIGEST = f"sha256:{hashlib.sha256(_CONTENT).hexdigest()}"
_OTHER = f"sha256:{'0' * 64}"


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble() as running:
        yield running


def _ask(double: OllamaDouble, method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(double.url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read()
    finally:
        connection.close()


def _create(double: OllamaDouble, **request: object) -> tuple[int, list[dict[str, object]]]:
    status, _, body = _ask(double, "POST", "/api/create", json.dumps(request).encode())
    return status, [json.loads(line) for line in body.splitlines()]


def test_it_says_who_it_is(double: OllamaDouble) -> None:
    assert _ask(double, "GET", "/") == (200, "application/json", b'"Ollama is running"')
    assert json.loads(_ask(double, "GET", "/api/version")[2]) == {"version": "0.33.0-rc2"}
    assert _ask(double, "GET", "/api/nothing")[0] == 404


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:" + "0" * 64, "0" * 64, "sha256:" + "g" * 64])
def test_a_malformed_digest_is_400(double: OllamaDouble, digest: str) -> None:
    assert _ask(double, "HEAD", f"/api/blobs/{digest}")[0] == 400
    status, _, body = _ask(double, "POST", f"/api/blobs/{digest}", _CONTENT)
    assert (status, json.loads(body)) == (400, {"error": "invalid digest format"})


def test_a_blob_is_404_then_201_then_200(double: OllamaDouble) -> None:
    path = f"/api/blobs/{_DIGEST}"
    statuses = [_ask(double, method, path, body)[0] for method, body in (("HEAD", b""), ("POST", _CONTENT), ("HEAD", b""), ("POST", b"unread"))]  # fmt: skip
    assert statuses == [404, 201, 200, 200]
    assert _ask(double, "HEAD", path.replace(":", "-"))[0] == 200
    assert double.blobs == {_DIGEST: _CONTENT}


def test_a_wrong_digest_is_400_and_the_blob_stays_under_its_true_one(double: OllamaDouble) -> None:
    status, _, body = _ask(double, "POST", f"/api/blobs/{_OTHER}", _CONTENT)
    assert status == 400
    assert json.loads(body) == {"error": f'digest mismatch, expected "{_OTHER}", got "{_DIGEST}"'}
    assert list(double.blobs) == [_DIGEST]


def test_a_create_is_a_stream_of_json_lines_that_ends_in_success(double: OllamaDouble) -> None:
    double.blobs[_DIGEST] = _CONTENT
    status, kind, body = _ask(
        double, "POST", "/api/create", json.dumps({"model": "M", "files": {"m.gguf": _DIGEST}}).encode()
    )
    lines = [json.loads(line)["status"] for line in body.splitlines()]
    assert (status, kind) == (200, "application/x-ndjson")
    assert lines == ["parsing GGUF", "validating GGUF model", f"creating new layer {_DIGEST}", "writing manifest", "success"]  # fmt: skip
    assert json.loads(_ask(double, "GET", "/api/tags")[2])["models"][0]["name"] == "m:latest"
    assert _ask(double, "POST", "/api/show", b'{"model": "m"}')[0] == 200
    assert _ask(double, "DELETE", "/api/delete", b'{"model": "m"}')[0] == 200
    assert _ask(double, "POST", "/api/show", b'{"model": "m"}')[0] == 404


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"model": "a b", "files": {"m.gguf": _DIGEST}}, "invalid model name"),
        ({"model": "m"}, "neither 'from' or 'files' was specified"),
        ({"model": "m", "files": {}}, "no files provided to convert"),
        ({"model": "m", "files": {"/m.gguf": _DIGEST}}, "file path must be relative"),
        ({"model": "m", "files": {"m.gguf": "abc"}}, "invalid digest format"),
        ({"model": "m", "files": {"m.gguf": _OTHER}}, f"blob {_OTHER}: no such file or directory"),
        ({"model": "m", "files": {"m.gguf": "text"}}, "supplied file was not in GGUF format"),
    ],
)
def test_what_is_wrong_with_a_request_is_an_http_error(
    double: OllamaDouble, request_: dict[str, object], error: str
) -> None:
    text = f"sha256:{hashlib.sha256(b'text').hexdigest()}"
    double.blobs.update({_DIGEST: _CONTENT, text: b"text"})
    if request_.get("files") == {"m.gguf": "text"}:
        request_ = {**request_, "files": {"m.gguf": text}}
    assert _create(double, **request_) == (400, [{"error": error}])
    assert not double.models


def test_no_body_is_400(double: OllamaDouble) -> None:
    status, _, body = _ask(double, "POST", "/api/create")
    assert (status, json.loads(body)) == (400, {"error": "missing request body"})


@pytest.mark.parametrize(("name", "taken"), [("q4_K_M", True), ("Q8_0", True), ("bf16", True), ("Q5_K_M", False)])
def test_quantization_names_are_those_of_ollama_in_any_case(double: OllamaDouble, name: str, taken: bool) -> None:
    double.blobs[_DIGEST] = _CONTENT
    status, lines = _create(double, model="m", files={"m.gguf": _DIGEST}, quantize=name)
    assert status == 200
    assert (lines[-1] == {"status": "success"}) is taken
    assert taken or str(lines[-1]["error"]).startswith(f"unsupported quantization type {name} - supported types are")


def test_a_template_that_does_not_end_is_an_error_line(double: OllamaDouble) -> None:
    double.blobs[_DIGEST] = _CONTENT
    _, lines = _create(double, model="m", files={"m.gguf": _DIGEST}, template="{{ if .System }}x")
    assert "template" in str(lines[-1]["error"])


@pytest.mark.parametrize(
    ("name", "taken"),
    [("m", True), ("me/m:v1", True), ("r.io/me/m", True), ("m:", False), ("a.b/m", False), ("a/b/c/d", False), ("é", False)],
)  # fmt: skip
def test_names_are_checked_part_by_part(name: str, taken: bool) -> None:
    assert valid(name) is taken
