"""The stage that scores adapters on the held-out rows of every task: rows are read and tokenised here, the backend scores.

It advises, and ends no campaign: a held-out row that cannot be used is left out, and so is a task without any, with a word
about it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from backpropagate_backends.base import Backend, Tokenizer
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.jobs import EvaluateJob, PreparedRef
from backpropagate_protocol.measured import Evaluation
from backpropagate_protocol.messages import Phase
from backpropagate_protocol.prepared import Prepared, open_prepared
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.export.stage import Stage
from backpropagate_runner.frameworks import Frameworks
from backpropagate_runner.prepare import prepare
from backpropagate_runner.validate import scan
from backpropagate_runner.voice import Voice


def evaluate(job: EvaluateJob, voice: Voice, frameworks: Frameworks, stage: Stage) -> Evaluation:
    """A Score for every candidate on every task that has held-out rows. Raises what loading or scoring raises; of the data
    only that the hub does not answer, which is worth another try."""
    voice.phase(Phase.IMPORT)
    backend = frameworks.backend(job.backend)
    tasks = _tasks(job, backend, voice)
    stage.advance(0, len(job.candidates) * len(tasks))
    if not tasks:
        return Evaluation(())
    numbers = list(tasks)
    scores = backend.evaluate(job, list(tasks.values()), stage)
    return Evaluation(tuple(msgspec.structs.replace(score, task=numbers[score.task]) for score in scores))


def _tasks(job: EvaluateJob, backend: Backend, voice: Voice) -> dict[int, Prepared]:
    """The prepared rows of each task that has some, by the task's number in the Job."""
    tokenizer = backend.tokenizer(job.model)
    found = {}
    for number, task in enumerate(job.tasks):
        try:
            found[number] = _prepared(msgspec.structs.replace(task, on_bad_row="skip"), tokenizer, job.cache, voice)
        except DatasetError as error:
            if error.code == "DEP_HUB_UNREACHABLE":
                raise
            voice.notice(f"task {number + 1} is not scored: {error.message}", "warning")
    return found


def _prepared(task: DataSpec, tokenizer: Tokenizer, cache: str, voice: Voice) -> Prepared:
    voice.phase(Phase.VALIDATE)
    rows = scan(task, lambda done, total, detail: voice.phase(Phase.VALIDATE, done, total, detail))
    voice.phase(Phase.TOKENIZE)
    ready = prepare(
        task, tokenizer, rows, Path(cache), lambda done, total, detail: voice.phase(Phase.TOKENIZE, done, total, detail)
    )
    return open_prepared(PreparedRef(ready.path, ready.digest))
