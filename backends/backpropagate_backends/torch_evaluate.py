"""Scores adapters on prepared rows: the mean loss in nats per token that carries loss, and how many of them are foreseen.

The same loss as in training, token by token (a row's first token has nothing before it and never counts), summed in float64.
Logits are made only where a token carries loss, so many at once as a bounded share of memory holds: of 152,000 words, the
logits of one long row alone would take more than a gigabyte.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from backpropagate_backends.base import GoOn, HeldOut, Reporting
from backpropagate_backends.model_source import find
from backpropagate_backends.torch_generate import with_adapter
from backpropagate_backends.torch_model import choose_precision, load_model
from backpropagate_backends.torch_tokenizer import load_tokenizer
from backpropagate_protocol.jobs import EvaluateJob
from backpropagate_protocol.measured import Score
from backpropagate_protocol.prepared import Prepared

_LOGITS = 512 << 20  # bytes that the logits of one forward pass may take, their float32 copy included


@dataclass(frozen=True, slots=True)
class _Row:
    """One row's tokens, and the places of those that carry loss, the first token left out."""

    index: int
    ids: list[int]
    targets: list[int]


def evaluate(
    job: EvaluateJob, tasks: Sequence[Prepared], device: Literal["cpu", "cuda"], stage: Reporting
) -> tuple[Score, ...]:
    """See `base.Backend.evaluate`."""
    source = find(job.model)
    stage.advance(0, 0, f"loading {source.name}")
    precision = choose_precision(job.model, device, stage.notice)
    base = load_model(source, precision, load_tokenizer(source), stage.notice)
    scores = []
    for number, candidate in enumerate(job.candidates):
        model = base if candidate.adapter is None else with_adapter(base, candidate.adapter)
        model.eval()
        for task, data in enumerate(tasks):
            done = (number * len(tasks) + task, len(job.candidates) * len(tasks))
            stage.advance(*done, candidate.name)
            scores.append(Scorer(model, job.batch_size, stage).score(candidate.name, task, data, done))
        if isinstance(model, PeftModel):
            base = model.unload()  # its layers are taken off again: the next candidate sees the bare base
    return tuple(scores)


class _Left(Exception):
    """The scoring is to be left."""


@dataclass(frozen=True, slots=True)
class _Amid:
    """The stage of a scoring amid a training: asks at every sign of progress whether to go on."""

    go_on: GoOn
    rows: int

    def advance(self, done: int = 0, total: int = 0, detail: str = "") -> None:
        if not self.go_on(done, self.rows):
            raise _Left

    def notice(self, text: str, level: str = "info") -> None: ...


def held_out(
    model: PreTrainedModel | PeftModel,
    data: Prepared,
    batch_size: int,
    go_on: GoOn,
    fits: Callable[[int], None] = lambda rows: None,
) -> HeldOut | None:
    """The model as it is, already in evaluation mode, on the held-out rows of its training; see `base.Score`. `fits` is told how
    many rows at once it came down to."""
    scorer = Scorer(model, batch_size, _Amid(go_on, len(data)))
    try:
        score = scorer.score("", 0, data)
    except _Left:
        return None
    finally:
        fits(scorer.batch)
    return HeldOut(score.loss, score.rows, score.tokens, {"accuracy": score.accuracy})


class Scorer:
    """One model, already in evaluation mode. Batches are as large as wished while they fit; one that does not is halved, and so are those after it."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, batch_size: int, stage: Reporting, logits: int = _LOGITS
    ) -> None:
        self._model, self.batch, self._stage = model, max(1, batch_size), stage
        bare = model.get_base_model() if isinstance(model, PeftModel) else model
        self._chooses = "logits_to_keep" in inspect.signature(bare.forward).parameters
        width = bare.get_output_embeddings().weight.shape[0]
        self._places = max(1, logits // (width * (4 + 4)))  # logits at once, over all rows of a batch

    def score(self, name: str, task: int, data: Prepared, done: tuple[int, int] | None = None) -> Score:
        """`done`: which of how many tasks this is, for the progress; None: rows are what is counted. NaN or infinity where the model says such things."""
        losses = [0.0] * len(data)
        foreseen = tokens = rows = 0
        waiting = deque(_batches(_rows(data), self.batch, self._places))
        while waiting:
            batch = waiting.popleft()
            # Before each: a planned shortage comes in it, and so where a real one would.
            at = (*(done or (rows, len(data))), f"{name}: {rows} of {len(data)} rows")
            found = self._tried(batch, at)
            if found is None:
                torch.cuda.empty_cache()
                self.batch = len(batch) // 2
                left = [row for rows_of_batch in (batch, *waiting) for row in rows_of_batch]
                waiting = deque(_batches(left, self.batch, self._places))
                continue
            for row, (loss, right) in zip(batch, found, strict=True):
                losses[row.index] = loss
                foreseen += right
                tokens += len(row.targets)
                rows += 1
        self._stage.advance(*(done or (rows, len(data))), f"{name}: {rows} of {len(data)} rows")
        share = max(1, tokens)
        return Score(name, task, math.fsum(losses) / share, foreseen / share, tokens, rows)

    def _tried(self, batch: list[_Row], at: tuple[int, int, str]) -> list[tuple[float, int]] | None:
        """None if it does not fit; what it held of the memory is free again then."""
        try:
            self._stage.advance(*at)
            return self._batch_scores(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
            return None

    @torch.no_grad()  # not inference mode: what a model remembers of one must not get into a training
    def _batch_scores(self, batch: list[_Row]) -> list[tuple[float, int]]:
        """For each row: the sum of its tokens' losses, and how many of them were the likeliest."""
        shape = (len(batch), max(len(row.ids) for row in batch))
        ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for at, row in enumerate(batch):
            ids[at, : len(row.ids)] = torch.tensor(row.ids)
            mask[at, : len(row.ids)] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        # What is said of a token is read where the token before it stands.
        places = sorted({target - 1 for row in batch for target in row.targets})
        step = max(1, self._places // len(batch))
        losses, right = [0.0] * len(batch), [0] * len(batch)
        for first in range(0, len(places), step):
            chunk = places[first : first + step]
            logits = self._logits(ids, mask, chunk)
            column = {place: at for at, place in enumerate(chunk)}
            for at, row in enumerate(batch):
                targets = [target for target in row.targets if target - 1 in column]
                if not targets:
                    continue
                said = logits[at, [column[target - 1] for target in targets]].float()
                true = ids[at, targets]
                taken = said.gather(1, true[:, None])[:, 0]
                losses[at] += float((torch.logsumexp(said, dim=-1) - taken).double().sum())
                right[at] += int((said.argmax(dim=-1) == true).sum())
        return list(zip(losses, right, strict=True))

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor, places: list[int]) -> torch.Tensor:
        """(rows, len(places), words), in the precision that the model computes in."""
        logits: torch.Tensor
        if self._chooses:
            keep = torch.tensor(places, device=ids.device)
            logits = self._model(input_ids=ids, attention_mask=mask, logits_to_keep=keep, use_cache=False).logits
        else:
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, places]
        return logits


def _rows(data: Prepared) -> list[_Row]:
    """Those in which a token carries loss."""
    rows = []
    for index in range(len(data)):
        tokens, trained = data.row(index)
        targets = [place for place in range(1, len(trained)) if trained[place]]
        if targets:
            rows.append(_Row(index, list(tokens), targets))
    return rows


def _batches(rows: list[_Row], most: int, places: int) -> Iterator[list[_Row]]:
    """Rows of like length together, the longest first: what does not fit is met at once. A row whose logits are too many for
    company is alone."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: (-len(row.ids), row.index)):
        together = [*batch, row]
        wanted = len({target for one in together for target in one.targets}) * len(together)
        if batch and (len(together) > most or wanted > places):
            yield batch
            together = [row]
        batch = together
    if batch:
        yield batch
