"""An Ollama server as far as registering a model goes: the documented contract, over real HTTP, without running any model.

The contract was read from Ollama's public source at v0.33.0-rc2 (server/create.go, server/routes.go, types/model/name.go)
and its docs/api.md. What the real server would refuse, this one refuses with the same status and words:
- HEAD and POST /api/blobs/DIGEST: 400 for a malformed digest, 404 / 200, 201 / 200 without reading the body, 400 for a body
  with another digest (which stays stored under its true one);
- POST /api/create: JSON in, NDJSON out with `success` last; errors before the first line are an HTTP status with
  `{"error"}`, later ones a line; names, file types by suffix or magic, quantization names and source types are checked;
- POST /api/show, GET /api/tags, GET /api/version, GET /, DELETE /api/delete.

Switches bring about what a real one does when something is wrong with its machine.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.doubles.http_double import Double, Handler

_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_OPENS, _CLOSES = re.compile(r"\{\{-? (?:if|range|with) "), re.compile(r"\{\{-? end -?\}\}")
_QUANTIZATIONS = ("F32", "F16", "BF16", "Q4_K_S", "Q4_K_M", "Q4_K", "Q8_0")
_SUPPORTED = "F32, F16, Q4_K_S, Q4_K_M, Q8_0"


@dataclass
class Faults:
    """What is wrong with the machine. Counters count down."""

    cut_uploads: int = 0  # the connection is cut in the middle of the body
    upload_status: int = 0  # the upload is refused with this status …
    upload_error: str = ""  # … and these words
    upload_unread: bool = False  # … before the body is read, hanging up
    garble: bool = False  # the stored bytes are not those that were sent
    error_line: str = ""  # an error after the first statuses of a create
    create_error: tuple[int, str] = (0, "")  # one before the first
    silent_end: bool = False  # the stream ends without success
    cut_create: bool = False  # the connection is cut in mid-stream
    noise: bool = False  # a line of the stream is no JSON
    forget: bool = False  # the model is not there after success
    foreign: bool = False  # no Ollama at all
    plain_text: bool = False  # the version is answered in words


@dataclass
class Model:
    """What `create` made."""

    files: dict[str, str]
    template: str | None
    parameters: dict[str, object]
    quantize: str | None


class _Handler(Handler):
    double: OllamaDouble

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        double = self.double
        double.requests.append(f"{self.command} {self.path}")
        if double.faults.foreign:
            self.close_connection = True
            self.answer(404, {"detail": "Not Found"})
            return
        path = self.path.removeprefix(double.prefix)
        if path.startswith("/api/blobs/"):
            self._blob(path.removeprefix("/api/blobs/"))
            return
        match self.command, path:
            case "GET", "/api/version":
                self.answer(200, "hello" if double.faults.plain_text else {"version": double.version})
            case "GET", "/":
                self.answer(200, "Ollama is running")
            case "GET", "/api/tags":
                self.answer(200, {"models": [{"name": name, "model": name} for name in double.models]})
            case "POST", "/api/create":
                self._create()
            case "POST", "/api/show":
                name = full(str(json.loads(self.body()).get("model", "")))
                found = double.models.get(name.lower())
                if found is None:
                    self.answer(404, {"error": f"model '{name}' not found"})
                else:
                    self.answer(200, {"template": found.template or "", "details": {"format": "gguf"}})
            case "DELETE", "/api/delete":
                name = full(str(json.loads(self.body()).get("model", "")))
                gone = double.models.pop(name.lower(), None)
                self.answer(200 if gone else 404, None if gone else {"error": f"model '{name}' not found"})
            case _:
                self.answer(404, "404 page not found")

    # --- blobs ------------------------------------------------------------------------------------------------------

    def _blob(self, digest: str) -> None:
        blobs, faults = self.double.blobs, self.double.faults
        if not _DIGEST.fullmatch(digest):
            self.close_connection = True
            self.answer(400, {"error": "invalid digest format"})
            return
        digest = digest.replace("-", ":").lower()
        if self.command == "HEAD":
            self.answer(200 if digest in blobs else 404)
            return
        if digest in blobs:
            self.close_connection = True  # the body is not read
            self.answer(200)
            return
        if faults.upload_unread:
            self.close_connection = True
            self.answer(faults.upload_status, {"error": faults.upload_error})
            return
        if faults.cut_uploads:
            faults.cut_uploads -= 1
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.hang_up()
            return
        content = self.body()
        if faults.upload_status:
            self.answer(faults.upload_status, {"error": faults.upload_error})
            return
        if faults.garble:
            content += b"?"
        true = f"sha256:{hashlib.sha256(content).hexdigest()}"
        blobs[true] = content
        if true != digest:
            self.answer(400, {"error": f'digest mismatch, expected "{digest}", got "{true}"'})
            return
        self.answer(201)

    # --- create -----------------------------------------------------------------------------------------------------

    def _create(self) -> None:
        body = self.body()
        lines = self._made(json.loads(body)) if body else iter([(400, {"error": "missing request body"})])
        status, first = next(lines)
        if status != 200:
            self.answer(status, first)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._line(first)
        for status, line in lines:
            if line is None:
                self.hang_up()
                return
            self._line(line)
            if status != 200:
                break
        self.wfile.write(b"0\r\n\r\n")

    def _line(self, line: object) -> None:
        data = (line if isinstance(line, str) else json.dumps(line)).encode() + b"\n"
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _made(self, request: dict[str, object]) -> Iterator[tuple[int, object]]:
        """(200, line) for each status; another number with an error; None as a line cuts the connection."""
        double, faults = self.double, self.double.faults
        name = str(request.get("model", ""))
        files = request.get("files")
        if faults.create_error[0]:
            yield faults.create_error[0], {"error": faults.create_error[1]}
            return
        if not valid(name):
            yield 400, {"error": "invalid model name"}
            return
        if not isinstance(files, dict):
            yield 400, {"error": "neither 'from' or 'files' was specified"}
            return
        problem = self._files_problem(files)
        if problem:
            yield 400, {"error": problem}
            return
        yield 200, {"status": "parsing GGUF"}
        if faults.noise:
            yield 200, "<html>"
        if faults.cut_create:
            yield 200, None
        if faults.error_line:
            yield 500, {"error": faults.error_line}
            return
        quantize = request.get("quantize")
        if isinstance(quantize, str):
            if quantize.upper() not in _QUANTIZATIONS:
                yield 500, {"error": f"unsupported quantization type {quantize} - supported types are {_SUPPORTED}"}
                return
            yield 200, {"status": f"quantizing F16 model to {quantize}", "completed": 1, "total": 2}
        template = request.get("template")
        if isinstance(template, str) and len(_OPENS.findall(template)) != len(_CLOSES.findall(template)):
            yield 400, {"error": "template error: unexpected EOF"}
            return
        yield 200, {"status": "validating GGUF model"}
        yield 200, {"status": "creating new layer " + next(iter(files.values()))}
        if faults.silent_end:
            return
        yield 200, {"status": "writing manifest"}
        parameters = request.get("parameters")
        if not faults.forget:
            double.models[full(name).lower()] = Model(
                files=files,
                template=template if isinstance(template, str) else None,
                parameters=parameters if isinstance(parameters, dict) else {},
                quantize=quantize if isinstance(quantize, str) else None,
            )
        yield 200, {"status": "success"}

    def _files_problem(self, files: dict[str, str]) -> str:
        if not files:
            return "no files provided to convert"
        for file, digest in files.items():
            if file.startswith("/") or ".." in file.split("/"):
                return "file path must be relative"
            if not _DIGEST.fullmatch(digest):
                return "invalid digest format"
            content = self.double.blobs.get(digest.replace("-", ":").lower())
            if content is None:
                return f"blob {digest}: no such file or directory"
            if not file.endswith(".safetensors") and content[:4] != b"GGUF":
                return "supplied file was not in GGUF format" if file.endswith(".gguf") else "unknown type"
        return ""


def valid(name: str) -> bool:
    """Whether the server takes the name, registry and namespace included."""
    rest, tag = (name.rsplit(":", 1)) if name.rfind(":") > name.rfind("/") else (name, "latest")
    parts = rest.split("/")
    if len(parts) > 3 or not all(_PART.fullmatch(part) for part in (tag, parts[-1])):
        return False
    return len(parts) < 2 or (_PART.fullmatch(parts[-2]) is not None and "." not in parts[-2])


def full(name: str) -> str:
    return name if name.rfind(":") > name.rfind("/") else f"{name}:latest"


@dataclass
class _State:
    version: str = "0.33.0-rc2"
    prefix: str = ""  # a path before every address, as behind a proxy
    faults: Faults = field(default_factory=Faults)
    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)


class OllamaDouble(_State, Double):
    """The server. `blobs`: digest to content; `models`: what was created, by full name in lower case."""

    handler = _Handler

    def __init__(self, version: str = "0.33.0-rc2", prefix: str = "") -> None:
        _State.__init__(self, version=version, prefix=prefix)
        Double.__init__(self)
