"""Sample ids of preference data → one padded micro-batch, fetched from the memory map as `torch_data.Collator` does.

Both collators give input_ids, attention_mask, labels (what the output head has to score; IGNORED elsewhere) and answer (1
where a token belongs to an answer), each int64 (rows, longest).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from backpropagate_backends.torch_data import CONSUMED, IGNORED, SAMPLE_ID, Consumed
from backpropagate_backends.torch_preference_loss import Preference
from backpropagate_protocol.prepared import PAIRS, Prepared

DESIRABLE = "desirable"  # the key of a batch under which the labels are, bool (rows,)
ANSWER = "answer"

Batch = dict[str, torch.Tensor]
_Row = tuple[np.ndarray, np.ndarray]  # token ids, and 1 where one belongs to the answer


class PairCollator:
    """n pairs make 2n rows: the chosen answers, then the rejected ones."""

    def __init__(self, data: Prepared, pad_token_id: int, *, learns_chosen: bool) -> None:
        self._data, self._pad, self._learns_chosen = data, pad_token_id, learns_chosen

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, torch.Tensor | Consumed]:
        ids = [example[SAMPLE_ID] for example in examples]
        batch = self.batch(ids)
        return {**batch, CONSUMED: _consumed(ids, batch)}

    def batch(self, ids: Sequence[int]) -> Batch:
        pairs = [self._data.pair(index) for index in ids]
        rows = [_row(*chosen) for chosen, _ in pairs] + [_row(*rejected) for _, rejected in pairs]
        return _padded(rows, self._pad, whole=len(ids) if self._learns_chosen else 0)


class LabelCollator:
    """One row for each sample, and whether its answer is a good one."""

    def __init__(self, data: Prepared, pad_token_id: int, max_length: int) -> None:
        self._data, self._pad, self._max_length = data, pad_token_id, max_length

    def __call__(self, examples: Sequence[dict[str, int]]) -> dict[str, torch.Tensor | Consumed]:
        ids = [example[SAMPLE_ID] for example in examples]
        batch = self.batch(ids)
        return {**batch, CONSUMED: _consumed(ids, batch)}

    def batch(self, ids: Sequence[int]) -> Batch:
        batch = _padded([_row(*self._data.row(index)) for index in ids], self._pad)
        batch[DESIRABLE] = torch.tensor([self._data.label(index) for index in ids])
        return batch

    def mismatched(self, ids: Sequence[int], others: Sequence[int]) -> Batch:
        """The prompts of `ids`, each with the answer of one of `others`, cut where training rows are."""
        rows = []
        for index, other in zip(ids, others, strict=True):
            prompt, answer = _row(*self._data.row(index)), _row(*self._data.row(other))
            ours, theirs = _prompt_length(prompt), _prompt_length(answer)
            tokens = np.concatenate([prompt[0][:ours], answer[0][theirs:]])[: self._max_length]
            flags = np.concatenate([np.zeros(ours, np.int64), answer[1][theirs:]])[: self._max_length]
            rows.append((tokens, flags))
        return _padded(rows, self._pad)


def out_of_balance(preference: Preference, data: Prepared) -> str:
    """What to say about labelled data whose good and bad answers weigh too differently for KTO; empty: nothing.

    Its authors want the good ones to weigh as much as the bad ones, and up to a third more.
    """
    good = sum(data.label(index) for index in range(len(data)))
    bad = len(data) - good
    if good == 0 or bad == 0:
        return f"all {len(data)} answers are {'good' if good else 'bad'}: kto has nothing to tell apart"
    ratio = preference.desirable * good / (preference.undesirable * bad)
    if 0.99 <= ratio <= 1.34:
        return ""
    better = f"--kto-desirable-weight {preference.desirable / ratio:.2f}"
    if preference.desirable / ratio < 1:
        better = f"--kto-undesirable-weight {preference.undesirable * ratio:.2f}"
    return f"{good} good answers and {bad} bad ones weigh {ratio:.2f} to 1; {better} would balance them"


def neighbours(ids: Sequence[int], data: Prepared) -> list[int]:
    """Whose answer each sample is confronted with: that of a sample of the optimizer step with another prompt; each answer is
    taken once. With the samples of each prompt beside each other, going back by as many as the commonest prompt has leaves
    every prompt that is not in more than half of them. The others go back in the data. Hangs on ids and data alone."""
    prompts = [_prompt(data, index) for index in ids]
    places: dict[bytes, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(place)
    grouped = [place for group in places.values() for place in group]
    back = max(map(len, places.values()))
    found = list(ids)
    for at, place in enumerate(grouped):
        other = grouped[(at - back) % len(grouped)]
        same = prompts[other] == prompts[place]
        found[place] = _back_in_data(data, ids[place], prompts[place], back) if same else ids[other]
    return found


def _back_in_data(data: Prepared, index: int, prompt: bytes, back: int) -> int:
    """The first sample with another prompt, from `back` before this one; if there is none, the sample before it."""
    candidates = ((index - distance) % len(data) for distance in range(back, back + len(data)))
    return next((other for other in candidates if _prompt(data, other) != prompt), (index - 1) % len(data))


def _prompt(data: Prepared, index: int) -> bytes:
    row = _row(*data.row(index))
    return row[0][: _prompt_length(row)].tobytes()


def batches_by_length(data: Prepared) -> Iterator[list[int]]:
    """All samples, those of like length together, with their padding never larger than the longest one alone. Hangs on the
    data alone."""
    longest = [_longest(data, index) for index in range(len(data))]
    most, batch = max(longest, default=0), list[int]()
    for index in sorted(range(len(data)), key=lambda index: (longest[index], index)):
        if batch and (len(batch) + 1) * longest[index] > most:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _longest(data: Prepared, index: int) -> int:
    rows = data.pair(index) if data.kind == PAIRS else (data.row(index),)
    return max(len(tokens) for tokens, _ in rows)


def _row(tokens: memoryview, trained: memoryview) -> _Row:
    return np.asarray(tokens), np.asarray(trained).astype(np.int64)


def _prompt_length(row: _Row) -> int:
    """Tokens before the answer; all of them if there is none."""
    flags = row[1]
    return int(flags.argmax()) if flags.any() else len(flags)


def _padded(rows: Sequence[_Row], pad: int, whole: int = 0) -> Batch:
    """The first `whole` rows are scored from end to end, the others in their answers."""
    shape = (len(rows), max(len(tokens) for tokens, _ in rows))
    input_ids = np.full(shape, pad, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    mask, answer = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for at, (tokens, flags) in enumerate(rows):
        length = len(tokens)
        input_ids[at, :length] = tokens
        labels[at, :length] = tokens if at < whole else np.where(flags != 0, tokens, IGNORED)
        answer[at, :length] = flags
        mask[at, :length] = 1
    arrays = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, ANSWER: answer}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _consumed(ids: Sequence[int], batch: Batch) -> Consumed:
    return Consumed(np.array(ids, dtype="<i8").tobytes(), int(batch["attention_mask"].sum()))
