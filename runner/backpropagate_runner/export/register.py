"""The stage that gives a GGUF to Ollama: hash it, upload it unless the server has it, create the model, see that it is there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from backpropagate_protocol.errors import GGUFExportError, OllamaRegistrationError
from backpropagate_protocol.export_formats import QUANTIZATIONS
from backpropagate_protocol.jobs import RegisterJob
from backpropagate_protocol.messages import Registered
from backpropagate_runner.export.ollama import READS_TEMPLATES, Advance, Server, check_name, version_tuple
from backpropagate_runner.export.ollama_errors import UPDATE
from backpropagate_runner.export.ollama_template import Derived, derive, template_of
from backpropagate_runner.export.read_gguf import GgufFile
from backpropagate_runner.export.stage import Stage

_CHUNK = 1 << 20
_FILE = "model.gguf"  # what the file is called in the request; the suffix tells Ollama what it is


def register(job: RegisterJob, stage: Stage) -> Registered:
    """Registers `job.gguf` under `job.name`, replacing a model of that name. Raises OllamaRegistrationError."""
    if problem := check_name(job.name):
        raise OllamaRegistrationError(
            f"Ollama takes no such name: {problem}",
            suggestion="Give another --ollama-name, such as my-model or me/my-model:v1.",
        )
    server = Server(job.host)
    version = server.version()
    path = Path(job.gguf)
    quantize = _quantize(job.quantize)
    try:
        explicit = _template(path, version, stage)
        digest = f"sha256:{sha256(path, stage.advance)}"
        uploaded = server.upload(path, digest, stage.advance)
    except OSError as error:
        raise OllamaRegistrationError(
            f"{path.name} cannot be read: {error.strerror or error}", suggestion="Run the export again."
        ) from error
    server.create(
        job.name,
        {_FILE: digest},
        template=explicit.template if explicit else None,
        stops=explicit.stops if explicit else (),
        quantize=quantize,
        advance=stage.advance,
    )
    if server.show(job.name) is None:
        raise OllamaRegistrationError(
            f"Ollama said success, and then that it knows no model {job.name}",
            suggestion="See the server's log; another program may have removed the model. Run the export again.",
        )
    return Registered(
        name=job.name,
        digest=digest.removeprefix("sha256:"),
        version=version,
        template=explicit is not None,
        uploaded=uploaded,
    )


def sha256(path: Path, advance: Advance) -> str:
    """The file's SHA-256 in hexadecimal; raises OSError."""
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            done += len(piece)
            advance(done, total, "reading the file")
    return digest.hexdigest()


def _quantize(wanted: str | None) -> str | None:
    if wanted is None:
        return None
    known = QUANTIZATIONS.get(wanted.lower())
    if known is None or not known.ollama:
        names = ", ".join(row.name for row in QUANTIZATIONS.values() if row.ollama)
        raise OllamaRegistrationError(
            f"Ollama cannot quantize to {wanted} by itself, only to {names}",
            suggestion="pip install 'backpropagate[export]', so that the file is quantized before Ollama gets it; then continue.",
        )
    return known.name.upper()


def _template(path: Path, version: str, stage: Stage) -> Derived | None:
    """The template to send. None: the server reads the file's own, or there is none."""
    stage.advance(0, 0, "reading the chat template")
    try:
        source, tokens = template_of(GgufFile(path))
    except GGUFExportError as error:
        raise OllamaRegistrationError(error.message, suggestion="Run the export again.") from error
    if source is None:
        stage.notice(f"{path.name} has no chat template: Ollama will give the model bare prompts", "warning")
        return None
    numbers = version_tuple(version)
    reads_it = numbers is None or numbers >= READS_TEMPLATES
    found = derive(source, tokens)
    if found is None and not reads_it:
        raise OllamaRegistrationError(
            f"Ollama {version} does not read the chat template in a GGUF, and this model's cannot be written in Ollama's own language",
            suggestion=f"{UPDATE} From {'.'.join(map(str, READS_TEMPLATES))} on, it uses the file's own template.",
        )
    # Left out, a current server would take a template of its own that looks much the same; so a date that stands still is
    # the lesser evil.
    if found is not None and found.dated:
        stage.notice("the model's chat template writes the date: in Ollama it will stay that of today")
    if found is not None and not found.system:
        stage.notice("the model's chat template has no place for a system message: Ollama will leave such messages out")
    return found
