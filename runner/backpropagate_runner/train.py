"""A TrainJob from top to bottom: rows, tokens, training, result."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backpropagate_backends.base import Backend
from backpropagate_protocol.errors import error_for
from backpropagate_protocol.jobs import PreparedRef, TrainJob
from backpropagate_protocol.messages import Phase, Stopped, TrainResult
from backpropagate_protocol.prepared import Prepared, open_prepared
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import ModelSpec
from backpropagate_runner.beginning import check_beginning
from backpropagate_runner.channel import Channel
from backpropagate_runner.checkpoint import check_data, open_resume
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.prepare import prepare
from backpropagate_runner.session import TrainSession, Voice
from backpropagate_runner.validate import needs_frameworks, scan


def train(
    job: TrainJob,
    channel: Channel,
    control: Control,
    voice: Voice,
    frameworks: Frameworks,
    packages: dict[str, str],
    drill: Drill,
) -> TrainResult | Stopped:
    """Does the Job. Raises whatever went wrong; a Stop that came while training is answered with Stopped."""
    if job.micro_batch * job.accumulation != job.spec.train.effective_batch:
        raise ValueError(
            f"{job.micro_batch} x {job.accumulation} samples are not {job.spec.train.effective_batch} in one step"
        )

    # ----- where to begin -----
    resume = open_resume(job)
    if resume is None:
        check_beginning(job)

    # ----- rows and tokens: in the first attempt; later ones get the same tokens again -----
    model = job.spec.model
    if resume is not None and resume.model_revision:
        model = msgspec.structs.replace(model, revision=resume.model_revision)
    backend, data = _data(job, model, channel, voice, frameworks)
    check_data(resume, data.manifest.digest)

    # ----- the training itself -----
    session = TrainSession(
        job,
        resume,
        voice,
        channel,
        control,
        drill,
        data_digest=data.manifest.digest,
        backend=backend.name,
        packages=packages,
    )
    session.phase(Phase.LOAD)
    session.before_step(0)
    result = backend.train(session, data)
    if result is None:
        return Stopped(voice.step, saved=session.saved_step == voice.step)

    # ----- the result -----
    return session.finish(result)


def _data(
    job: TrainJob, model: ModelSpec, channel: Channel, voice: Voice, frameworks: Frameworks
) -> tuple[Backend, Prepared]:
    if job.prepared is not None:
        backend = _backend(job, voice, frameworks)
        try:
            return backend, open_prepared(job.prepared)
        except ValueError:
            voice.notice("the prepared data are gone; they are made again from the source")
        data = _prepare(job, model, channel, voice, frameworks)[1]
        if data.manifest.digest != job.prepared.digest:
            raise error_for("STATE_RUN_MISMATCH", f"{job.spec.data.source} is not what this run began with")
        return backend, data
    return _prepare(job, model, channel, voice, frameworks)


def _prepare(
    job: TrainJob, model: ModelSpec, channel: Channel, voice: Voice, frameworks: Frameworks
) -> tuple[Backend, Prepared]:
    spec = job.spec
    if needs_frameworks(spec.data):
        _backend(job, voice, frameworks)
    voice.phase(Phase.VALIDATE)
    found = scan(spec.data, lambda done, total, detail: voice.phase(Phase.VALIDATE, done, total, detail))
    for text in found.notices:
        voice.notice(text, "warning")

    backend = _backend(job, voice, frameworks)
    voice.phase(Phase.TOKENIZE)
    ready = prepare(
        spec.data,
        backend.tokenizer(model),
        found,
        RunDir(Path(job.run_dir)).output.cache,
        lambda done, total, detail: voice.phase(Phase.TOKENIZE, done, total, detail),
        voice.notice,
    )
    channel.send(ready)
    return backend, open_prepared(PreparedRef(ready.path, ready.digest))


def _backend(job: TrainJob, voice: Voice, frameworks: Frameworks) -> Backend:
    voice.phase(Phase.IMPORT)
    backend = frameworks.backend(job.spec.backend)
    backend.check(job)
    return backend
