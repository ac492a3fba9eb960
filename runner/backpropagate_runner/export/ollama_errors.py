"""What an Ollama server says when it refuses, and what the user can do about exactly that."""

from __future__ import annotations

from backpropagate_protocol.errors import OllamaRegistrationError

UPDATE = "Update Ollama (https://ollama.com/download), then continue."
_AGAIN = "Run the export again; what Ollama already has is not uploaded twice."
_SPACE = (
    "Free space on the disk of the Ollama server (its models are in OLLAMA_MODELS, usually ~/.ollama/models; "
    "`ollama rm NAME` removes one), then continue. Ollama needs twice the size of the GGUF for a moment."
)
_BAD_NAME = "Give another --ollama-name: letters, digits and `_ . -`, such as my-model or me/my-model:v1."
_LOCAL = "pip install 'backpropagate[export]', so that the file is quantized before Ollama gets it; then continue."
_UNREADABLE = (
    "Look at the server's log (`journalctl -u ollama`, or server.log in ~/.ollama/logs). An older Ollama may not know this "
    "model's architecture: update it, then continue."
)

# The first text that occurs in the server's error decides; compared without regard to case.
_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("no space left", "disk quota", "not enough space", "enospc", "disk is full"), _SPACE),
    (("invalid model name", "invalid name"), _BAD_NAME),
    (("digest mismatch",), f"The file changed while it was sent, or the connection garbled it. {_AGAIN}"),
    (("unsupported quantization", "quantization is only supported"), _LOCAL),
    (("path or modelfile are required", "neither 'from' or 'files'"), UPDATE),
    (("unsupported architecture", "unknown model architecture", "unknown architecture"), UPDATE),
    (("failed to validate gguf", "not in gguf format", "unknown type", "invalid file magic"), _UNREADABLE),
    (("permission denied", "read-only file system"), "Give the Ollama server write access to its models folder, then continue."),
    (("out of memory", "cannot allocate"), "Free memory on the machine of the Ollama server, then continue."),
    (("template",), "This Ollama does not take the model's chat template. " + UPDATE),
)  # fmt: skip

_BY_STATUS = {
    401: "The server at OLLAMA_HOST wants a login; name the Ollama server itself, not a proxy in front of it.",
    403: "The server refuses this client: see OLLAMA_ORIGINS in Ollama's documentation, or the proxy in front of it.",
    404: "Is this an Ollama server, and a current one? Check OLLAMA_HOST (or --ollama-host), and update Ollama.",
    405: "Is this an Ollama server, and a current one? Check OLLAMA_HOST (or --ollama-host), and update Ollama.",
    413: "A proxy in front of Ollama limits the size of uploads; raise its limit, or name the Ollama server itself.",
    507: _SPACE,
}


def refused(doing: str, said: str, status: int = 0) -> OllamaRegistrationError:
    """The error for `said`, the server's own words, while `doing` (`create the model`); status 0: in mid-stream."""
    low = said.lower()
    remedy = next((text for needles, text in _REMEDIES if any(needle in low for needle in needles)), None)
    remedy = remedy or _BY_STATUS.get(status) or _UNREADABLE
    shown = said.strip()[:500] or "nothing more"
    told = f" (HTTP {status})" if status else ""
    return OllamaRegistrationError(f"Ollama did not {doing}{told}: {shown}", suggestion=remedy)


def unreachable(url: str, error: BaseException) -> OllamaRegistrationError:
    """Nobody listens, or the address is wrong."""
    return OllamaRegistrationError(
        f"no Ollama server can be reached at {url}: {_words(error)}",
        suggestion="Start it (`ollama serve`, or the Ollama app), or say where it is: OLLAMA_HOST or --ollama-host. Then continue.",
    )


def cut(doing: str, error: BaseException | str) -> OllamaRegistrationError:
    """The connection broke while `doing` (`uploading the model`)."""
    return OllamaRegistrationError(
        f"the connection to Ollama was cut while {doing}: {error if isinstance(error, str) else _words(error)}",
        suggestion=f"See whether the Ollama server is still running, and its log. {_AGAIN}",
    )


def foreign(url: str, said: str) -> OllamaRegistrationError:
    """Something answers that is no Ollama server."""
    return OllamaRegistrationError(
        f"what answers at {url} is not an Ollama server: {said.strip()[:200] or 'its answer is empty'}",
        suggestion="Check OLLAMA_HOST (or --ollama-host); Ollama usually listens on http://127.0.0.1:11434.",
    )


def _words(error: BaseException) -> str:
    """`Connection refused` rather than `[Errno 111] Connection refused`."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text)
