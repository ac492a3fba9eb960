"""A TrainJob from top to bottom: rows, tokens, training, result."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backpropagate_backends.base import Backend, Tokenizer
from backpropagate_protocol.errors import error_for
from backpropagate_protocol.jobs import PreparedRef, TrainJob
from backpropagate_protocol.messages import DataReady, Phase, Stopped, TrainResult
from backpropagate_protocol.prepared import Prepared, open_prepared
from backpropagate_protocol.rundir import RunDir
from backpropagate_protocol.spec import DataSpec, ModelSpec, is_evaluated, rail
from backpropagate_runner.beginning import check_beginning
from backpropagate_runner.channel import Channel
from backpropagate_runner.checkpoint import check_data, open_resume
from backpropagate_runner.control import Control
from backpropagate_runner.drill import Drill
from backpropagate_runner.examples import HELD_OUT
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.packages import told_if_others
from backpropagate_runner.prepare import prepare
from backpropagate_runner.session import TrainSession
from backpropagate_runner.validate import Scan, needs_frameworks, scan
from backpropagate_runner.voice import Voice


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
    elif (others := told_if_others(resume, packages)) is not None:
        voice.notice(others, "warning")

    # ----- rows and tokens: in the first attempt; later ones get the same tokens again -----
    model = job.spec.model
    if resume is not None and resume.model_revision:
        model = msgspec.structs.replace(model, revision=resume.model_revision)
    backend, data, held_out = _data(job, model, channel, voice, frameworks)
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
        held_out=held_out,
    )
    session.phase(Phase.LOAD)
    session.before_step(0)
    try:
        result = backend.train(session, data)
    except BaseException:
        session.let_go()
        raise
    if result is None:
        session.settle()
        return Stopped(voice.step, saved=session.saved_step == voice.step)

    # ----- the result -----
    return session.finish(result)


def _data(
    job: TrainJob, model: ModelSpec, channel: Channel, voice: Voice, frameworks: Frameworks
) -> tuple[Backend, Prepared, Prepared | None]:
    """The rows to train on, and those to be scored meanwhile, if the run is evaluated."""
    if job.prepared is not None:
        backend = _backend(job, voice, frameworks)
        try:
            return backend, open_prepared(job.prepared), open_prepared(job.held_out) if job.held_out else None
        except ValueError:
            voice.notice("the prepared data are gone; they are made again from the source")
    return _prepare(job, model, channel, voice, frameworks)


def _prepare(
    job: TrainJob, model: ModelSpec, channel: Channel, voice: Voice, frameworks: Frameworks
) -> tuple[Backend, Prepared, Prepared | None]:
    spec = job.spec
    if needs_frameworks(spec.data):
        _backend(job, voice, frameworks)
    # Both parts are read before anything is tokenised: a fault in any row is told at once.
    apart = msgspec.structs.replace(spec.data, part=HELD_OUT, replay=()) if is_evaluated(spec) else None
    found = _scan(spec.data, voice)
    found_apart = _scan(apart, voice) if apart is not None else None

    backend = _backend(job, voice, frameworks)
    tokenizer = backend.tokenizer(model)
    ready = _tokenise(spec.data, tokenizer, found, job, voice)
    held_out = None
    if apart is not None and found_apart is not None:
        scored = _tokenise(apart, tokenizer, found_apart, job, voice)
        held_out = open_prepared(PreparedRef(scored.path, scored.digest))
        ready = msgspec.structs.replace(
            ready, held_out_path=scored.path, held_out_digest=scored.digest, held_out_rows=scored.rows
        )
    if job.prepared is not None:
        begun_with = (job.prepared.digest, job.held_out.digest if job.held_out else "")
        if (ready.digest, ready.held_out_digest) != begun_with:  # unsaid: what was said is what the next child gets
            raise error_for("STATE_RUN_MISMATCH", f"{spec.data.source} is not what this run began with")
    channel.send(ready)
    return backend, open_prepared(PreparedRef(ready.path, ready.digest)), held_out


def _scan(data: DataSpec, voice: Voice) -> Scan:
    voice.phase(Phase.VALIDATE)
    found = scan(data, lambda done, total, detail: voice.phase(Phase.VALIDATE, done, total, detail))
    for text in found.notices:
        voice.notice(text, "warning")
    return found


def _tokenise(data: DataSpec, tokenizer: Tokenizer, found: Scan, job: TrainJob, voice: Voice) -> DataReady:
    voice.phase(Phase.TOKENIZE)
    return prepare(
        data,
        tokenizer,
        found,
        RunDir(Path(job.run_dir)).output.cache,
        lambda done, total, detail: voice.phase(Phase.TOKENIZE, done, total, detail),
        voice.notice,
    )


def _backend(job: TrainJob, voice: Voice, frameworks: Frameworks) -> Backend:
    if not frameworks.over:
        voice.phase(Phase.IMPORT)
    backend = frameworks.backend(rail(job.spec))
    backend.check(job)
    return backend
