"""The Ollama client against a server that keeps the documented contract, over real HTTP."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backpropagate_protocol.errors import OllamaRegistrationError
from backpropagate_runner.export.ollama import Server, version_tuple
from tests.doubles.http_double import unused_port
from tests.doubles.ollama_server import OllamaDouble

_CONTENT = b"GGUF" + bytes(3 << 20)
_DIGEST = f"sha256:{hashlib.sha256(_CONTENT).hexdigest()}"


def _silent(done: int, total: int, detail: str) -> None:
    pass


@pytest.fixture
def double() -> Iterator[OllamaDouble]:
    with OllamaDouble() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(_CONTENT)
    return path


def _create(server: Server, **more: str) -> None:
    server.create("me/model:v1", {"model.gguf": _DIGEST}, advance=_silent, **more)  # type: ignore[arg-type]


def test_a_model_is_uploaded_and_created_and_shown(double: OllamaDouble, file: Path) -> None:
    server = Server(double.url)
    signs: list[tuple[int, int, str]] = []
    assert server.version() == "0.33.0-rc2"
    assert server.upload(file, _DIGEST, lambda *sign: signs.append(sign)) == len(_CONTENT)
    assert signs[-1] == (len(_CONTENT), len(_CONTENT), "uploading to Ollama")
    assert len(signs) == 4  # one for each MiB and the rest
    _create(server)
    assert double.blobs == {_DIGEST: _CONTENT}
    assert list(double.models) == ["me/model:v1"]
    assert server.show("me/model:v1") is not None
    assert server.show("me/other") is None


def test_template_stops_and_quantization_arrive_as_given(double: OllamaDouble, file: Path) -> None:
    server = Server(double.url)
    server.upload(file, _DIGEST, _silent)
    statuses: list[str] = []
    server.create(
        "model",
        {"model.gguf": _DIGEST},
        template="{{ .Prompt }}",
        stops=("<|im_end|>",),
        quantize="Q4_K_M",
        advance=lambda done, total, status: statuses.append(f"{done}/{total} {status}"),
    )
    made = double.models["model:latest"]
    assert (made.template, made.parameters, made.quantize) == ("{{ .Prompt }}", {"stop": ["<|im_end|>"]}, "Q4_K_M")
    assert "1/2 quantizing F16 model to Q4_K_M" in statuses


def test_a_file_that_is_there_is_not_sent(double: OllamaDouble, file: Path) -> None:
    double.blobs[_DIGEST] = _CONTENT
    assert Server(double.url).upload(file, _DIGEST, _silent) == 0
    assert double.requests == [f"HEAD /api/blobs/{_DIGEST}"]


def test_a_cut_upload_is_tried_again_from_the_start(double: OllamaDouble, file: Path) -> None:
    double.faults.cut_uploads = 2
    assert Server(double.url).upload(file, _DIGEST, _silent) == len(_CONTENT)
    assert double.blobs == {_DIGEST: _CONTENT}


def test_an_upload_that_is_always_cut_ends(double: OllamaDouble, file: Path) -> None:
    double.faults.cut_uploads = 99
    with pytest.raises(OllamaRegistrationError, match="cut while uploading the model") as told:
        Server(double.url).upload(file, _DIGEST, _silent)
    assert "still running" in told.value.suggestion
    assert double.faults.cut_uploads == 96


@pytest.mark.parametrize("unread", [True, False])
def test_a_full_disk_of_the_server_is_told_with_its_words(double: OllamaDouble, file: Path, unread: bool) -> None:
    double.faults.upload_unread = unread
    double.faults.upload_status = 507
    double.faults.upload_error = "write /models/blobs/x: no space left on device"
    with pytest.raises(OllamaRegistrationError, match=r"HTTP 507.*no space left on device") as told:
        Server(double.url).upload(file, _DIGEST, _silent)
    assert told.value.suggestion.startswith("Free space on the disk of the Ollama server")


def test_a_digest_that_does_not_fit_is_told(double: OllamaDouble, file: Path) -> None:
    double.faults.garble = True
    with pytest.raises(OllamaRegistrationError, match="digest mismatch") as told:
        Server(double.url).upload(file, _DIGEST, _silent)
    assert "changed while it was sent" in told.value.suggestion


def test_a_malformed_digest_is_the_servers_refusal(double: OllamaDouble) -> None:
    with pytest.raises(OllamaRegistrationError, match="HTTP 400"):
        Server(double.url).has_blob("sha256:abc")


def test_a_daemon_that_is_down_is_told_with_how_to_start_it() -> None:
    with pytest.raises(OllamaRegistrationError, match="no Ollama server can be reached at http://127") as told:
        Server(f"127.0.0.1:{unused_port()}").version()
    assert told.value.code == "DEP_OLLAMA_REGISTRATION_FAILED"
    assert "ollama serve" in told.value.suggestion


def test_a_host_that_cannot_be_read_is_told() -> None:
    with pytest.raises(OllamaRegistrationError, match="ftp://") as told:
        Server("ftp://x")
    assert "OLLAMA_HOST" in told.value.suggestion


@pytest.mark.parametrize("version", ["0.5.4", "0.1.32", "0.5.4-rc1"])
def test_an_old_server_is_told_which_version_it_takes_and_why(version: str) -> None:
    with OllamaDouble(version) as double, pytest.raises(OllamaRegistrationError, match=r"0\.5\.5 is the first") as told:
        Server(double.url).version()
    assert "Update Ollama" in told.value.suggestion


@pytest.mark.parametrize("version", ["0.5.5", "0.30.0-rc1", "0.0.0", "1.0.0"])
def test_newer_servers_and_builds_from_source_are_taken(version: str) -> None:
    with OllamaDouble(version) as double:
        assert Server(double.url).version() == version


def test_versions_are_compared_as_numbers() -> None:
    assert version_tuple("v0.30.11-rc2") == (0, 30, 11)
    assert version_tuple("0.0.0") is None
    assert version_tuple("main") is None


@pytest.mark.parametrize("kind", ["foreign", "plain_text"])
def test_a_server_that_is_not_ollama_is_told(double: OllamaDouble, kind: str) -> None:
    setattr(double.faults, kind, True)
    with pytest.raises(OllamaRegistrationError, match="is not an Ollama server") as told:
        Server(double.url).version()
    assert "11434" in told.value.suggestion


def test_something_that_does_not_speak_http_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example ready\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(OllamaRegistrationError, match="not an Ollama server: 220 mail"):
            Server(f"127.0.0.1:{listener.getsockname()[1]}").version()
        thread.join()


def test_a_path_behind_a_proxy_is_kept(file: Path) -> None:
    with OllamaDouble(prefix="/ollama") as double:
        server = Server(f"{double.url}/ollama/")
        assert server.version()
        assert server.upload(file, _DIGEST, _silent)
        _create(server)
        assert double.requests[0] == "GET /ollama/api/version"


def test_no_proxy_is_asked(double: OllamaDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    assert Server(double.url).version()


def test_a_name_that_the_server_refuses_is_told(double: OllamaDouble) -> None:
    with pytest.raises(OllamaRegistrationError, match="invalid model name") as told:
        Server(double.url).create("a b", {"model.gguf": _DIGEST}, advance=_silent)
    assert "--ollama-name" in told.value.suggestion


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("write blob: no space left on device", "Free space"),
        ("write blob: disk quota exceeded", "Free space"),
        ('unsupported architecture "Foo"', "Update Ollama"),
        ("failed to validate GGUF with llama-quantize without compatibility patches: exit 1", "log"),
        ("quantization is only supported for F16, BF16 and F32 models", "backpropagate[export]"),
        ("open manifest: permission denied", "write access"),
        ("something nobody has seen before", "log"),
    ],
)
def test_an_error_in_mid_stream_is_told_with_its_remedy(
    double: OllamaDouble, file: Path, said: str, remedy: str
) -> None:
    server = Server(double.url)
    server.upload(file, _DIGEST, _silent)
    double.faults.error_line = said
    with pytest.raises(OllamaRegistrationError) as told:
        _create(server)
    assert said in told.value.message
    assert remedy in told.value.suggestion
    assert not double.models


def test_an_error_before_the_stream_is_told_with_its_status(double: OllamaDouble) -> None:
    double.faults.create_error = (500, "out of memory")
    with pytest.raises(OllamaRegistrationError, match=r"HTTP 500.*out of memory") as told:
        _create(Server(double.url))
    assert "memory" in told.value.suggestion


def test_a_stream_without_success_is_a_failure(double: OllamaDouble, file: Path) -> None:
    server = Server(double.url)
    server.upload(file, _DIGEST, _silent)
    double.faults.silent_end = True
    with pytest.raises(OllamaRegistrationError, match=r"without saying success.*creating new layer"):
        _create(server)


@pytest.mark.parametrize(("kind", "words"), [("cut_create", "without saying success"), ("noise", "is not JSON")])
def test_a_stream_that_is_cut_or_garbled_is_a_failure(double: OllamaDouble, file: Path, kind: str, words: str) -> None:
    server = Server(double.url)
    server.upload(file, _DIGEST, _silent)
    setattr(double.faults, kind, True)
    with pytest.raises(OllamaRegistrationError, match=words):
        _create(server)


def test_a_file_that_is_no_gguf_is_the_servers_refusal(double: OllamaDouble, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"text")
    digest = f"sha256:{hashlib.sha256(b'text').hexdigest()}"
    server = Server(double.url)
    server.upload(path, digest, _silent)
    with pytest.raises(OllamaRegistrationError, match="not in GGUF format"):
        server.create("m", {"model.gguf": digest}, advance=_silent)


@pytest.mark.slow
def test_while_the_server_is_silent_signs_go_on_until_patience_ends() -> None:
    """A create that says nothing for as long as `patience` is given up, with its connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = threading.Event()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b'HTTP/1.1 200 OK\r\n\r\n{"status":"validating GGUF model"}\n')
                while connection.recv(1000):
                    pass
                closed.set()

        thread = threading.Thread(target=answer)
        thread.start()
        signs: list[str] = []
        server = Server(f"127.0.0.1:{listener.getsockname()[1]}", patience=1.5)
        with pytest.raises(OllamaRegistrationError, match="no word for"):
            server.create("m", {}, advance=lambda done, total, status: signs.append(status))
        thread.join(30)
        assert closed.is_set()
        assert len(signs) >= 2
        assert set(signs) == {"validating GGUF model"}
