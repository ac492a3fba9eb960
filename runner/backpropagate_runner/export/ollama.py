"""A client for the part of Ollama's HTTP API that registers a model: version, blobs, create, show.

Over http.client: no proxy variable is honoured, which is what one wants of a server on this machine. Every failure is an
OllamaRegistrationError that says what happened and what to do about exactly that. Nothing is left half-registered: the
server writes a model's manifest last.
"""

from __future__ import annotations

import http.client
import json
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from backpropagate_protocol.errors import OllamaRegistrationError
from backpropagate_protocol.ollama_names import check_name as check_name
from backpropagate_protocol.ollama_names import parse_host
from backpropagate_runner.export.ollama_errors import UPDATE, cut, foreign, refused, unreachable

Advance = Callable[[int, int, str], None]

MINIMUM = (0, 5, 5)  # the first whose create takes files by their digest; before, it wanted a Modelfile
READS_TEMPLATES = (0, 30, 0)  # the first that renders a GGUF's own chat template

_CHUNK = 1 << 20
_TRIES = 3  # of an upload whose connection is cut
_SOON = 10.0  # seconds in which a server that is there says which version it is
_TICK = 1.0  # seconds between two signs while the server works without a word
_QUIET = 3600.0  # seconds without a line after which a create counts as hung; a big model is checked for minutes
_MAX_LINE = 1 << 20


def version_tuple(version: str) -> tuple[int, int, int] | None:
    """`0.33.0-rc2` as (0, 33, 0); None for what is no version, and for 0.0.0, as builds from source call themselves."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    found = (int(match[1]), int(match[2]), int(match[3])) if match else None
    return found if found != (0, 0, 0) else None


class Server:
    """One server. `host` as in OLLAMA_HOST; `timeout` in seconds, for one answer or one piece of an upload."""

    def __init__(self, host: str, timeout: float = 300.0, patience: float = _QUIET) -> None:
        try:
            self._at = parse_host(host)
        except ValueError as error:
            raise OllamaRegistrationError(
                str(error), suggestion="Set OLLAMA_HOST (or --ollama-host) to something like http://127.0.0.1:11434."
            ) from error
        self.url = self._at.url
        self._timeout, self._patience = timeout, patience

    def version(self) -> str:
        """The server's version. Raises if nobody answers, if it is no Ollama server, or one older than MINIMUM."""
        with self._connection(_SOON, _SOON) as connection:
            status, body = self._call(connection, "GET", "/api/version")
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        found = answer.get("version") if isinstance(answer, dict) and status == http.client.OK else None
        if not isinstance(found, str):
            raise foreign(self.url, f"HTTP {status}, {body[:120].decode('utf-8', 'replace')}")
        numbers = version_tuple(found)
        if numbers is not None and numbers < MINIMUM:
            raise OllamaRegistrationError(
                f"Ollama {found} is too old: {'.'.join(map(str, MINIMUM))} is the first version that takes uploaded GGUF files",
                suggestion=UPDATE,
            )
        return found

    def has_blob(self, digest: str) -> bool:
        """Whether the server has the file; digest as `sha256:<64 hex digits>`."""
        with self._connection() as connection:
            status, _ = self._call(connection, "HEAD", f"/api/blobs/{digest}")
        if status not in (http.client.OK, http.client.NOT_FOUND):
            raise refused("say whether it has the file", "", status)
        return status == http.client.OK

    def upload(self, path: Path, digest: str, advance: Advance) -> int:
        """Sends the file under its digest; returns the bytes that were sent: 0 if the server has it already.

        A connection that is cut is tried again, from the start: the protocol knows no resuming.
        """
        for attempt in range(1, _TRIES + 1):
            if self.has_blob(digest):
                return 0
            try:
                return self._send(path, digest, advance)
            except _Cut as broken:
                if attempt == _TRIES:
                    raise cut("uploading the model", str(broken)) from broken
                advance(0, 0, f"the connection was cut, uploading again ({attempt + 1} of {_TRIES})")
        raise AssertionError("the loop returns or raises")

    def create(
        self,
        name: str,
        files: dict[str, str],
        *,
        template: str | None = None,
        stops: tuple[str, ...] = (),
        quantize: str | None = None,
        advance: Advance,
    ) -> None:
        """Makes a model of uploaded GGUF files ({file name: digest}); returns when the server has said `success`."""
        request: dict[str, object] = {"model": name, "files": files, "stream": True}
        if template is not None:
            request["template"] = template
        if stops:
            request["parameters"] = {"stop": list(stops)}
        if quantize is not None:
            request["quantize"] = quantize
        said = [""]
        with self._connection() as connection:
            wire = connection.sock  # http.client forgets it where the server closes after its answer
            response = self._ask(connection, "POST", "/api/create", json.dumps(request).encode())
            if response.status != http.client.OK:
                raise refused("create the model", _error_in(self._rest(response)), response.status)
            wire.settimeout(2 * self._patience)  # ours ends first, and says why
            for line in self._lines(response, wire, lambda: advance(0, 0, said[-1])):
                told = _object(line)
                if "error" in told:
                    raise refused("create the model", str(told["error"]))
                said.append(str(told.get("status", "")))
                if said[-1] == "success":
                    return
                done, total = (n if isinstance(n := told.get(key), int) else 0 for key in ("completed", "total"))
                advance(done, total, said[-1])
        raise OllamaRegistrationError(
            f"Ollama ended its answer without saying success; its last word was {said[-1]!r}",
            suggestion="See whether the Ollama server is still running, and its log. Run the export again; what Ollama already has is not uploaded twice.",
        )

    def show(self, name: str) -> dict[str, object] | None:
        """What the server knows of a model; None if it has none of that name."""
        with self._connection() as connection:
            status, body = self._call(connection, "POST", "/api/show", json.dumps({"model": name}).encode())
        if status == http.client.NOT_FOUND:
            return None
        if status != http.client.OK:
            raise refused("show the model", _error_in(body), status)
        return _object(body)

    # --- the wire ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _connection(self, connect: float = 30.0, read: float | None = None) -> Iterator[http.client.HTTPConnection]:
        kind = http.client.HTTPSConnection if self._at.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._at.host, self._at.port, timeout=connect)
        try:
            connection.connect()
            assert connection.sock is not None
            connection.sock.settimeout(read or self._timeout)
        except ssl.SSLError as error:
            connection.close()
            raise foreign(self.url, f"no secure connection: {error}") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name with an empty label
            connection.close()
            raise unreachable(self.url, error) from error
        try:
            yield connection
        finally:
            connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, self._at.path + path, body, headers)
            return connection.getresponse()
        except http.client.BadStatusLine as error:
            if isinstance(error, http.client.RemoteDisconnected):
                raise cut("waiting for an answer", error) from error
            raise foreign(self.url, str(error)) from error
        except (OSError, http.client.HTTPException) as error:
            raise cut("waiting for an answer", error) from error

    def _call(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None
    ) -> tuple[int, bytes]:
        response = self._ask(connection, method, path, body)
        return response.status, self._rest(response)

    @staticmethod
    def _rest(response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise cut("reading the answer", error) from error

    def _send(self, path: Path, digest: str, advance: Advance) -> int:
        total = path.stat().st_size
        with self._connection() as connection, path.open("rb") as file:
            broken: OSError | None = None
            sent = 0
            try:
                connection.putrequest("POST", f"{self._at.path}/api/blobs/{digest}")
                connection.putheader("Content-Length", str(total))
                connection.putheader("Content-Type", "application/octet-stream")
                connection.endheaders()
                while piece := file.read(_CHUNK):
                    connection.send(piece)
                    sent += len(piece)
                    advance(sent, total, "uploading to Ollama")
            except OSError as error:
                broken = error  # a server that refuses in the middle says why, and then hangs up
            try:
                response = connection.getresponse()
                status, body = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                raise _Cut(str(broken or error)) from error
        if status == http.client.OK:
            return 0
        if status != http.client.CREATED:
            raise refused("take the file", _error_in(body), status)
        return total

    def _lines(
        self,
        response: http.client.HTTPResponse,
        wire: socket.socket,
        tick: Callable[[], None],
    ) -> Iterator[bytes]:
        """The answer's lines. While none comes, `tick` is called every second: the server works without a word."""
        arrived: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()

        def read() -> None:
            try:
                while line := response.readline(_MAX_LINE):
                    arrived.put(line)
                arrived.put(None)
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: closed while reading
                arrived.put(error)

        reader = threading.Thread(target=read, name="ollama-answer", daemon=True)
        reader.start()
        heard = time.monotonic()
        try:
            while True:
                try:
                    item = arrived.get(timeout=_TICK)
                except queue.Empty:
                    if time.monotonic() - heard > self._patience:
                        raise cut("creating the model", f"no word for {self._patience:.0f} s") from None
                    tick()
                    continue
                heard = time.monotonic()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise cut("creating the model", item)
                if item.strip():
                    yield item
        finally:
            try:
                wire.shutdown(socket.SHUT_RDWR)  # wakes the reader
            except OSError:
                pass  # closed by the server
            reader.join()
            response.close()


class _Cut(Exception):
    """An upload's connection broke without an answer."""


def _object(line: bytes) -> dict[str, object]:
    try:
        told = json.loads(line)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise cut(
            "creating the model", f"its answer holds {line[:120].decode('utf-8', 'replace')!r}, which is not JSON"
        )
    return told


def _error_in(body: bytes) -> str:
    """The server's own words: `{"error": …}`, or the text of whoever answered."""
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if isinstance(told, dict) and isinstance(told.get("error"), str):
        return str(told["error"])
    return body[:300].decode("utf-8", "replace")
