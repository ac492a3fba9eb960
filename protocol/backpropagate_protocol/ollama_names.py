"""Where an Ollama server is, and what its models may be called: OLLAMA_HOST and model names, read as Ollama reads them.

Pure text, so that both sides of the wall refuse the same things before anything is started.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

DEFAULT_HOST = "http://127.0.0.1:11434"
DEFAULT_TAG = "latest"

_PORTS = {"http": 80, "https": 443}
_OWN_PORT = 11434  # where no scheme is given
_LONGEST_PORT = 65535
# Where a server that listens on every interface is reached from its own machine.
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_HOST_CHARACTERS = re.compile(r"[A-Za-z0-9._:%-]+")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_REGISTRY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")


class OllamaHost(NamedTuple):
    """A server's address. `path` is empty or begins with a slash and ends without one."""

    scheme: str  # http, https
    host: str  # without brackets
    port: int
    path: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def parse_host(text: str) -> OllamaHost:
    """`host`, `:port`, `host:port`, `[::1]:port`, each with or without `http://`, `https://` and a path; empty: the default.

    An address that means "every interface" becomes the loopback one. Raises ValueError saying what cannot be read.
    """
    text = text.strip().strip("\"'")
    scheme, found, rest = text.partition("://")
    if not found:
        scheme, rest, default = "http", text, _OWN_PORT
    else:
        scheme = scheme.lower()
        if scheme not in _PORTS:
            raise ValueError(f"{text!r} begins with {scheme}://, where only http:// and https:// can be used")
        default = _PORTS[scheme]
    place, _, path = rest.partition("/")
    if "@" in place:
        raise ValueError("the address of Ollama holds a user name, which Ollama does not know")
    host, port = _split(place)
    if port and not (port.isascii() and port.isdigit() and int(port) <= _LONGEST_PORT):
        raise ValueError(f"{text!r} has no port number behind its last colon")
    host = _EVERYWHERE.get(host, host)
    if not _HOST_CHARACTERS.fullmatch(host):
        raise ValueError(f"{text!r} holds no host name")
    path = path.rstrip("/")
    return OllamaHost(scheme, host, int(port) if port else default, f"/{path}" if path else "")


def _split(place: str) -> tuple[str, str]:
    """Host without brackets, and port or nothing."""
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        return host, port.removeprefix(":")
    try:
        return str(ipaddress.IPv6Address(place)), ""
    except ValueError:
        host, _, port = place.rpartition(":") if ":" in place else (place, "", "")
        return host, port


def check_name(name: str) -> str | None:
    """None for a name that Ollama takes, `[registry/][namespace/]model[:tag]`; else what is wrong with it."""
    if not name:
        return "the name is empty"
    rest, tag = name, DEFAULT_TAG
    if name.rfind(":") > name.rfind("/"):
        rest, _, tag = name.rpartition(":")
    *before, model = rest.removeprefix("http://").removeprefix("https://").split("/")
    if len(before) > 2:
        return f"{name!r} has more than the two slashes of registry/namespace/model"
    parts = [("model name", model, _PART, ""), ("tag", tag, _PART, "")]
    if before:
        parts.append(("namespace", before[-1], _NAMESPACE, " without a dot"))
    if len(before) == 2:
        parts.append(("registry", before[0], _REGISTRY, ""))
    for what, part, pattern, but in parts:
        if not pattern.fullmatch(part):
            return (
                f"{part!r} cannot be the {what} in {name!r}: it takes 1 to {350 if what == 'registry' else 80} letters, "
                f"digits and `_ . -`{but}, and begins with a letter, a digit or `_`"
            )
    return None


def full_name(name: str) -> str:
    """The name as Ollama lists it: with its tag."""
    return name if name.rfind(":") > name.rfind("/") else f"{name}:{DEFAULT_TAG}"
