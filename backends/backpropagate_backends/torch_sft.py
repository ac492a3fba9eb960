"""TRL's SFTTrainer with our account of samples, our save policy, and checkpoints that go through the session.

What is overridden, and why it has to be:
    get_train_dataloader  to find the position without walking to it, and to tie worker processes to ours
    training_step         the one place where a micro-batch is certainly consumed, and where memory runs out
    get_batch_samples     knows all samples of an optimizer step, which may have to be cut anew
    compute_loss          TRL's waits for the device three times in each micro-batch, for metrics
    _save_checkpoint      the one place where an error of writing can be told from an error of training
    _save_optimizer_and_scheduler, _save   what is large is copied and not written yet; and there is no
                          `training_args.bin`, a pickle, and no tokenizer, which does not change
    _load_optimizer_and_scheduler   where the moments of a paged optimizer go back into paged memory
    _load_from_checkpoint a whole model was loaded from there already
    create_model_card     would write beside the checkpoints, at each of them
Everything else goes through public callbacks. `save_steps` and `logging_steps` of an old trainer_state.json have no
say: saving is never scheduled by the Trainer, and every step is logged because the callback asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from backpropagate_backends.arrangement import Arrangement
from backpropagate_backends.base import GoOn, HeldOut, Score, Session
from backpropagate_backends.torch_copy import is_write_error, make_ready, take
from backpropagate_backends.torch_data import CONSUMED, SAMPLE_ID, Account, Batches, EpochOrder, ids_of
from backpropagate_backends.torch_evaluate import held_out
from backpropagate_backends.torch_micro import Memory, MicroBatches, Tools
from backpropagate_backends.torch_paging import page_again
from backpropagate_backends.torch_rehearsal import rehearse
from backpropagate_backends.torch_spare import Spare
from backpropagate_backends.torch_still import still
from backpropagate_protocol.lifeline import worker_init
from backpropagate_protocol.messages import Progress, Started
from backpropagate_protocol.prepared import Prepared

_MIB = 1 << 20
_SCHEDULER = "scheduler.pt"  # where the Trainer looks for it


class ExactTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """What is ours is given after construction, by `attach`."""

    session: Session
    boundary: Boundary
    skip: int  # micro-batches of the first epoch that were trained on before
    arranged: Arrangement
    micro: MicroBatches
    scored_at_once: int  # held-out rows
    memory: Memory
    spare: Spare

    def attach(
        self, session: Session, boundary: Boundary, skip: int, arranged: Arrangement, data: Prepared, memory: Memory
    ) -> None:
        self.session, self.boundary, self.skip, self.arranged = session, boundary, skip, arranged
        self.scored_at_once = self.args.per_device_train_batch_size
        tools = Tools(self.batch_of, self.cut_into, self.forget_step)
        self.micro = MicroBatches(session, tools, self.args.per_device_train_batch_size, memory)
        boundary.rehearse = lambda: rehearse(self, data)
        self.spare, self.memory = Spare(), memory
        boundary.stepped = self.stepped
        if session.job.spec.faults:
            trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            trained[len(trained) // 2].register_post_accumulate_grad_hook(lambda _: session.within("backward"))
        self.fuse_head()
        boundary.measured, boundary.score = self.measured, self.score
        # TRL's loss divides by the trained tokens of the whole accumulated batch for every architecture, but the count
        # is only made for models whose forward takes loss arguments; without it, a halved batch is another loss.
        self.model_accepts_loss_kwargs = True
        self.add_callback(boundary)

    def stepped(self) -> None:
        """After each optimizer step; the first time, what comes of it is there to be measured."""
        self.memory.begun()
        make_ready(self.model, self.optimizer, self.spare)

    def fuse_head(self) -> None:
        """TRL's head also measures entropy and accuracy, which nobody here reads: another pass over all logits."""
        from trl.trainer.utils import add_fused_lm_head  # not there yet in the older TRL that Unsloth wants

        add_fused_lm_head(
            self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model, outputs=("log_probs",)
        )

    def measured(self) -> dict[str, float]:
        """What else is known of the step just done, by name; asking begins the next step's account."""
        return {}

    def held_out_loss(self, data: Prepared, go_on: GoOn) -> HeldOut | None:
        """The loss of held-out samples, of the model as it is; called by `score`, which sees to all else."""
        return held_out(self.model, data, self.scored_at_once, go_on, self.score_at_most)

    def score_at_most(self, rows: int) -> None:
        """More did not fit beside the training; what fits it is another matter."""
        self.scored_at_once = min(self.scored_at_once, rows)

    def score(self, data: Prepared, go_on: GoOn) -> HeldOut | None:
        """See `base.Score`. Also before the Trainer has prepared the model: the arithmetic is that of the training."""
        cuda = self.model.device.type == "cuda"
        dtype = torch.float16 if self.args.fp16 else torch.bfloat16
        mixed = torch.autocast(self.model.device.type, dtype=dtype, enabled=self.args.fp16 or self.args.bf16)
        try:
            with torch.random.fork_rng(devices=[self.model.device] if cuda else []), still(self.model), mixed:
                return self.held_out_loss(data, go_on)
        finally:
            if cuda:
                torch.cuda.empty_cache()  # the training finds the memory as it left it

    def get_train_dataloader(self) -> DataLoader[dict[str, int]]:
        order = EpochOrder(len(self.train_dataset), self.args.data_seed, self.arranged)
        loader: DataLoader[dict[str, int]] = DataLoader(
            self.train_dataset,
            batch_sampler=Batches(order, self.args.per_device_train_batch_size, self.skip),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=worker_init,
        )
        prepared: DataLoader[dict[str, int]] = self.accelerator.prepare(loader)
        return prepared

    def training_step(self, model: torch.nn.Module, inputs: dict[str, object], *rest: object) -> torch.Tensor:
        self.boundary.account.take(inputs.pop(CONSUMED))  # type: ignore[arg-type]  # our collator put it there
        return self.micro.step(lambda batch: self.one(model, batch, *rest), inputs)

    def one(self, model: torch.nn.Module, batch: dict[str, object], *rest: object) -> torch.Tensor:
        """Forward and backward of one micro-batch."""
        self.session.within("forward")
        loss: torch.Tensor = super().training_step(model, batch, *rest)
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """All micro-batches of one optimizer step, and the tokens in them that carry loss."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.micro.begin([index for batch in batches for index in ids_of(batch[CONSUMED])])
        return batches, count

    def batch_of(self, ids: Sequence[int]) -> dict[str, object]:
        """The micro-batch of these samples, as the loader would give it."""
        batch: dict[str, object] = self.data_collator([{SAMPLE_ID: index} for index in ids])
        del batch[CONSUMED]
        return batch

    def cut_into(self, parts: int) -> None:
        self.current_gradient_accumulation_steps = parts

    def forget_step(self) -> None:
        """What the step has left so far."""
        self.model.zero_grad(set_to_none=True)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """TRL's loss without its metrics, each of which would wait for the device in every micro-batch."""
        assert not return_outputs
        assert num_items_in_batch is not None
        balanced = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**inputs, **balanced, use_cache=False, fused_lm_head=True)
        # A step without any token that carries loss is a zero, not 0 / 0.
        loss: torch.Tensor = -outputs.log_probs.sum() / num_items_in_batch.clamp(min=1)
        if self.aux_loss_enabled:  # a mean of each micro-batch, as everywhere
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / self.current_gradient_accumulation_steps
        return loss

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        return

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            page_again(self.optimizer)

    def _save(self, output_dir: str | None = None, state_dict: object | None = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        progress = self.boundary.progress
        staged = self.session.staging / f"checkpoint-{progress.step}"
        try:
            super()._save_checkpoint(model, trial)  # what is small: position, schedule, random states
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_write_error(error):
                raise
            self.session.save_failed(progress, error)
            return
        state = take(self.model, self.optimizer, self.spare)
        self.session.keep(staged, progress, state.write, copied=state.copied)


@dataclass(frozen=True, slots=True)
class Header:
    """What `Started` says and the Trainer does not know."""

    backend: str
    device: str
    precision: str
    samples_seen: int
    optimizer: str
    model_revision: str
    gpu_uuid: str = ""
    device_memory: int = 0
    notes: tuple[str, ...] = ()


class Boundary(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Speaks with the session at every step boundary, and remembers where the run stands."""

    def __init__(self, session: Session, account: Account, header: Header) -> None:
        self.account = account
        self.stopped = False
        self.progress = Progress(0, 0, account.samples, account.order, None)
        self.measured: Callable[[], dict[str, float]] = dict
        self.score: Score | None = None
        self.rehearse: Callable[[], None] = lambda: None
        self.stepped: Callable[[], None] = lambda: None
        self._session = session
        self._header = header
        self._began = 0.0
        # With fp16, overflowing gradients are the loss scaler's daily bread: it skips the step and scales down.
        self._scaled = header.precision.endswith("fp16")
        self._cuda = header.device.startswith("cuda")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        model = kwargs["model"]
        assert isinstance(model, torch.nn.Module)
        header = self._header
        self._session.started(
            Started(
                backend=header.backend,
                device=header.device,
                step=state.global_step,
                total_steps=state.max_steps,
                samples_seen=header.samples_seen,
                micro_batch=args.per_device_train_batch_size,
                accumulation=args.gradient_accumulation_steps,
                trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
                parameters=_parameters(model),
                precision=header.precision,
                device_memory=header.device_memory,
                gpu_uuid=header.gpu_uuid,
                notes=header.notes,
                optimizer=header.optimizer,
                model_revision=header.model_revision,
            )
        )
        self.rehearse()
        self._began = perf_counter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._session.within("optimizer")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._session.before_step(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        # To read the loss is to wait for the device, once in a step: so one that is not finite is seen at the step that
        # made it, before it can reach a checkpoint.
        control.should_log = True
        control.should_save = False
        self.stepped()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        # The state is written whole at every checkpoint; its log would grow with the run.
        state.log_history.clear()
        if logs is None or "loss" not in logs:
            return  # the summary at the end
        now = perf_counter()
        grad_norm = logs.get("grad_norm")
        if self._scaled and grad_norm is not None and not math.isfinite(grad_norm):
            grad_norm = None
        self.progress = Progress(
            step=state.global_step,
            total_steps=state.max_steps,
            samples_seen=self.account.samples,
            order=self.account.order,
            loss=float(logs["loss"]),
            learning_rate=logs.get("learning_rate"),
            grad_norm=grad_norm,
            tokens=self.account.tokens,
            step_seconds=now - self._began,
            epoch=float(state.epoch or 0.0),
            memory_used=torch.cuda.max_memory_allocated() // _MIB if self._cuda else 0,
            memory_reserved=torch.cuda.memory_reserved() // _MIB if self._cuda else 0,
            extra=self.measured(),
            retries=torch.cuda.memory_stats_as_nested_dict()["num_alloc_retries"] if self._cuda else 0,
        )
        directive = self._session.step_done(self.progress, self.score)
        control.should_save = directive.save
        if directive.stop:
            self.stopped = True
        if directive.stop or directive.finish:
            control.should_training_stop = True
        self._began = perf_counter()


def _parameters(model: torch.nn.Module) -> int:
    """All parameters, a 4-bit one counted as what it stands for (bitsandbytes packs two into a byte)."""
    return sum(p.numel() * (2 if p.__class__.__name__ == "Params4bit" else 1) for p in model.parameters())
