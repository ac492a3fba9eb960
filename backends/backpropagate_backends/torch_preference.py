"""Preference training: our SFT trainer with another loss, normalised over the whole optimizer step.

TRL has a trainer for each method, and each of them averages what it finds in a micro-batch: ORPO and CPO the tokens of the
chosen answers, KTO the drift of the model. A halved batch would be another training there. Here the counts, and KTO's drift,
are those of all micro-batches of the step together, so it is the same one; a test holds every loss and gradient to TRL's on
a batch that is not cut. The output head is TRL's fused one, as in SFT: no logits of a whole batch are ever made.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from backpropagate_backends.base import GoOn, HeldOut
from backpropagate_backends.torch_data import CONSUMED, IGNORED, ids_of
from backpropagate_backends.torch_pairs import (
    ANSWER,
    DESIRABLE,
    Batch,
    LabelCollator,
    PairCollator,
    batches_by_length,
    neighbours,
)
from backpropagate_backends.torch_preference_loss import Answers, Judged, Measures, Preference, judge
from backpropagate_backends.torch_sft import ExactTrainer
from backpropagate_backends.torch_still import still
from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.prepared import LABELLED, PAIRS, Prepared

_HELD_OUT_ROWS = 2  # as little as any training of kto takes at once


@dataclass(slots=True)
class Step:
    """One optimizer step, before it is cut into micro-batches."""

    ids: list[int]  # of all samples
    tokens: torch.Tensor | int  # of the chosen conversations that are learnt
    divergence: torch.Tensor | None = None  # kto: how far the model has drifted, in nats per answer


@dataclass(slots=True)
class Tally:
    """What was measured since it was last read. Stays on the device: reading waits for it."""

    sums: Measures = field(default_factory=dict)

    def add(self, measures: Measures) -> None:
        for name, (value, count) in measures.items():
            had = self.sums.get(name)
            self.sums[name] = (value, count) if had is None else (had[0] + value, had[1] + count)

    def take(self) -> dict[str, float]:
        """The means, those that are finite, and the tally begins anew."""
        taken, self.sums = self.sums, {}
        if not taken:
            return {}
        figures = torch.stack([figure.double() for pair in taken.values() for figure in pair]).tolist()
        pairs = zip(taken, figures[::2], figures[1::2], strict=True)
        means = {name: value / count for name, value, count in pairs if count}
        if "chosen_reward" in means and "rejected_reward" in means:
            means["margin"] = means["chosen_reward"] - means["rejected_reward"]
        return {name: mean for name, mean in means.items() if math.isfinite(mean)}


class PreferenceTrainer(ExactTrainer):
    """`prefer` follows construction. The data are pairs; for kto they are labelled."""

    # The loss is divided by the samples of the whole step, not of a micro-batch.
    loss_is_scaled_for_ga = True

    preference: Preference
    _data: Prepared
    _max_length: int
    _step: Step
    _tally: Tally
    _scored_at_most: int  # held-out samples; more did not fit beside the training

    def prefer(self, preference: Preference, data: Prepared, max_length: int) -> None:
        self.preference, self._data, self._max_length = preference, data, max_length
        self._tally = Tally()
        self._scored_at_most = len(data)

    def measured(self) -> dict[str, float]:
        return self._tally.take()

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """All micro-batches of one optimizer step, and the samples in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        ids = [index for batch in batches for index in ids_of(batch[CONSUMED])]  # type: ignore[arg-type]  # our collator put it there
        self._step = Step(ids, sum(_learnt(batch) for batch in batches) if self.preference.learns_chosen else 0)
        return batches, torch.tensor(len(ids))

    def forget_step(self) -> None:
        super().forget_step()
        self._step.divergence = None
        self._tally = Tally()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The micro-batch's part of the step's loss: the parts add up to it."""
        assert not return_outputs
        step = self._step
        if self.preference.method == "kto" and step.divergence is None:
            step.divergence = self._divergence(self._data, step.ids, self.micro.size)
        judged, said = self._judged(model, inputs, step.divergence)
        loss = judged.losses.sum() / len(step.ids)
        self._tally.add(judged.measures)
        if self.preference.learns_chosen:
            loss = loss + said.nll / step.tokens
            self._tally.add({"nll": (said.nll.detach(), _learnt(inputs))})
        if said.balance is not None:  # a mean of each micro-batch, as everywhere
            loss = loss + self.router_aux_loss_coef * said.balance / self.current_gradient_accumulation_steps
        return loss

    def held_out_loss(self, data: Prepared, go_on: GoOn) -> HeldOut | None:
        """See `base.Score`. The method's own loss; the same to the bit whatever the micro-batch of the training is."""
        tally, losses, unlikely = Tally(), [], []
        learnt = tokens = done = 0
        collator = preference_collator(self.preference, data, self.processing_class, self._max_length)
        with self._still() as model:
            divergence = None
            if self.preference.method == "kto":
                divergence = self._held_out_divergence(data, lambda: go_on(0, len(data)))
                if divergence is None:
                    return None
            waiting = deque(batches_by_length(data))
            while waiting:
                ids = waiting.popleft()
                if len(ids) > self._scored_at_most:
                    waiting.extendleft((ids[self._scored_at_most :], ids[: self._scored_at_most]))
                    continue
                try:
                    if not go_on(done, len(data)):
                        return None
                    scored = self._scored(model, collator, ids, divergence)
                except torch.OutOfMemoryError:
                    if len(ids) == 1:
                        raise
                    scored = None
                if scored is None:
                    self._scored_at_most = len(ids) // 2
                    torch.cuda.empty_cache()
                    waiting.appendleft(ids)
                    continue
                batch, judged, said = scored
                losses.append(float(judged.losses.double().sum()))
                tally.add(judged.measures)
                if self.preference.learns_chosen:
                    unlikely.append(float(said.nll))
                    learnt += int(_learnt(batch))
                tokens += int(batch[ANSWER][:, 1:].sum())
                done += len(ids)
        loss, extra = math.fsum(losses) / done, tally.take()
        if self.preference.learns_chosen:
            extra["nll"] = math.fsum(unlikely) / learnt
            loss += extra["nll"]
        return HeldOut(loss, done, tokens, extra)

    def _held_out_divergence(self, data: Prepared, go_on: Callable[[], bool]) -> torch.Tensor | None:
        size = min(_HELD_OUT_ROWS, self._scored_at_most)
        try:
            return self._divergence(data, range(len(data)), size, go_on)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        self._scored_at_most = 1
        torch.cuda.empty_cache()
        return self._divergence(data, range(len(data)), 1, go_on)

    def _scored(
        self,
        model: PeftModel,
        collator: PairCollator | LabelCollator,
        ids: list[int],
        divergence: torch.Tensor | None,
    ) -> tuple[Batch, Judged, Answers]:
        batch = self._prepare_inputs(collator.batch(ids))
        return batch, *self._judged(model, batch, divergence)

    # --- what the model, and what it was before, say of answers -----------------------------------------------------

    def _judged(self, model: torch.nn.Module, batch: Batch, divergence: torch.Tensor | None) -> tuple[Judged, Answers]:
        reference = None
        if self.preference.has_reference:  # first, so that nothing of the training's forward pass is held meanwhile
            with self._still() as still, still.disable_adapter():
                reference = self._said(still, batch)
        said = self._said(model, batch)
        return judge(self.preference, said, reference, batch.get(DESIRABLE), divergence), said

    def _said(self, model: torch.nn.Module, batch: Batch) -> Answers:
        """What TRL's fused head says: (rows, longest - 1) log-probabilities, 0 where nothing is scored."""
        balanced = {"output_router_logits": True} if self.aux_loss_enabled and torch.is_grad_enabled() else {}
        outputs = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            use_cache=False,
            fused_lm_head=True,
            **balanced,
        )
        logs, answer = outputs.log_probs, batch[ANSWER][:, 1:]
        nll = -logs[: len(logs) // 2].sum() if self.preference.learns_chosen else logs.new_zeros(())
        balance = outputs.aux_loss if balanced else None
        return Answers((logs * answer).sum(dim=1), answer.sum(dim=1).clamp(min=1), nll, balance)

    def _divergence(
        self, data: Prepared, ids: Sequence[int], size: int, go_on: Callable[[], bool] = lambda: True
    ) -> torch.Tensor | None:
        """KTO's estimate of how far the model has drifted from what it was: on answers to other prompts than these, `size` at
        once. None if it was told not to go on."""
        collator = preference_collator(self.preference, data, self.processing_class, self._max_length)
        assert isinstance(collator, LabelCollator)
        others, drifts = neighbours(ids, data), []
        with self._still() as model:
            for start in range(0, len(ids), size):
                if not go_on():
                    return None
                batch = collator.mismatched(ids[start : start + size], others[start : start + size])
                batch = self._prepare_inputs(batch)
                now = self._said(model, batch).sums
                with model.disable_adapter():
                    drifts.append(now - self._said(model, batch).sums)
        return torch.cat(drifts).mean().clamp(min=0)

    @contextmanager
    def _still(self) -> Iterator[PeftModel]:
        """The model as it is used, in the precision that it is trained in."""
        model: PeftModel = self.accelerator.unwrap_model(self.model)
        with still(model), self.compute_loss_context_manager():
            yield model


def preference_collator(
    preference: Preference, data: Prepared, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PairCollator | LabelCollator:
    """Raises DatasetError if the data are not of the kind that the method takes."""
    kind = LABELLED if preference.method == "kto" else PAIRS
    if data.kind != kind:
        raise DatasetError(f"method {preference.method} takes {kind}, and the prepared data are {data.kind}")
    if preference.method == "kto":
        return LabelCollator(data, tokenizer.pad_token_id or 0, min(max_length, tokenizer.model_max_length))
    return PairCollator(data, tokenizer.pad_token_id or 0, learns_chosen=preference.learns_chosen)


def _learnt(batch: Batch) -> torch.Tensor:
    """Tokens of the chosen conversations that are scored; the first of a row has nothing before it. Not waited for."""
    labels = batch["labels"]
    return (labels[: len(labels) // 2, 1:] != IGNORED).sum()
