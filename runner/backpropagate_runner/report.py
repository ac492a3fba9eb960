"""What `backprop validate` shows: what the rows are and which of them are bad; with a model, what a training would see."""

from __future__ import annotations

from collections.abc import Callable

from backpropagate_backends.base import Tokenizer
from backpropagate_protocol.about_data import DataReport
from backpropagate_protocol.jobs import ValidateJob
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.redact import redact
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.statistics import measure
from backpropagate_runner.validate import PhaseReport, Scan, needs_frameworks, nothing_told, scan
from backpropagate_runner.voice import Voice


def report(
    job: ValidateJob, phase: PhaseReport = nothing_told, tokenizer: Callable[[], Tokenizer] | None = None
) -> DataReport:
    """Bad rows are reported, not raised; a data set that cannot be read at all, or of which nothing is left, raises.

    tokenizer: that of the Job's model, asked for once the rows are read.
    """
    found = scan(job.data, phase, max_errors=job.max_errors, lenient=True)
    errors = tuple(redact(error) for error in found.errors)
    plain = DataReport(
        found.format or "unknown",
        found.rows,
        found.bad,
        errors,
        found.counts,
        found.dropped,
        found.notices,
        unparsed=found.unparsed,
    )
    return plain if tokenizer is None or not found.taken else _measured(job, found, plain, tokenizer(), phase)


def validated(job: ValidateJob, voice: Voice, frameworks: Frameworks) -> DataReport:
    """Does the Job."""
    model = job.model

    def phase(done: int, total: int, detail: str) -> None:
        voice.phase(voice.where, done, total, detail)

    def tokenizer() -> Tokenizer:
        assert model is not None
        voice.phase(Phase.IMPORT)
        backend = frameworks.backend(job.backend)
        voice.phase(Phase.TOKENIZE)
        return backend.tokenizer(model)

    if needs_frameworks(job.data) and model is not None:
        frameworks.backend(job.backend)  # two threads that import the same large packages get in each other's way
    voice.phase(Phase.VALIDATE)
    return report(job, phase, None if model is None else tokenizer)


def _measured(job: ValidateJob, found: Scan, plain: DataReport, tokenizer: Tokenizer, phase: PhaseReport) -> DataReport:
    if found.counts.get("chat") and job.data.train_on == "assistant":
        tokenizer.check()
    room = max(0, job.max_errors - len(plain.errors))
    measured = measure(job.data, tokenizer, found, phase, samples=job.samples, max_errors=room)
    refused = measured.dropped["refused"]
    return DataReport(
        plain.format,
        plain.rows - refused,
        plain.bad + refused,
        (*plain.errors, *map(redact, measured.refused)),
        plain.counts,
        dict(measured.dropped),
        (*plain.notices, *measured.notices),
        measured.statistics,
        measured.shown,
        plain.unparsed,
    )
