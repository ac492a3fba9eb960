"""One training on torch, from top to bottom: check, load, train, hand over what was trained.

TRL's SFTTrainer does it, with a loss of ours where answers are compared. What this file fixes is what makes a run
repeatable and resumable: the same seeds, the same order of samples whatever the micro-batch, adapters in float32 whatever
the base, saving only when the session says so, and a position that counts samples.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from trl import SFTConfig

from backpropagate_backends.arrangement import arrangement
from backpropagate_backends.base import Session
from backpropagate_backends.model_source import Source, find
from backpropagate_backends.torch_choices import checkpointing_of_run, model_of_run, optimizer_of_run, precision_of_run
from backpropagate_backends.torch_data import Account, Collator, Course, course, ids_dataset
from backpropagate_backends.torch_init import begin_from
from backpropagate_backends.torch_kernels import UNSLOTH, Kernels, compile_layers, fit_kernels
from backpropagate_backends.torch_micro import Memory
from backpropagate_backends.torch_model import Precision, add_adapter, all_finite, load_model
from backpropagate_backends.torch_pairs import out_of_balance
from backpropagate_backends.torch_preference import PreferenceTrainer, preference_collator
from backpropagate_backends.torch_preference_loss import preference_of
from backpropagate_backends.torch_resume import check_resume
from backpropagate_backends.torch_sft import Boundary, ExactTrainer, Header
from backpropagate_backends.torch_tokenizer import load_tokenizer
from backpropagate_backends.torch_whole import copy_trained, digest_of, load_whole, save_trained
from backpropagate_backends.torch_wishes import check_wishes
from backpropagate_protocol.errors import DatasetError, LossDivergedError
from backpropagate_protocol.jobs import TrainJob
from backpropagate_protocol.messages import Phase, TrainResult
from backpropagate_protocol.prepared import Prepared

# Rows are read from a memory map: a worker process would only add a process to lose. Tests of the process tree raise it.
DATALOADER_WORKERS = 0


def train(
    session: Session, data: Prepared, name: str, device: Literal["cpu", "cuda"], unsloth: bool = False
) -> TrainResult | None:
    """See `base.Backend.train`. unsloth: the model, its adapter and its loss are Unsloth's."""
    job, spec = session.job, session.job.spec

    # ---- what is to be done -----------------------------------------------------------------------------------------
    check_wishes(job)
    if len(data) == 0:
        raise DatasetError(f"{spec.data.source} has no rows to train on")
    way = course(spec.train, len(data))
    precision = precision_of_run(spec.model, session.resume, device, session.notice, spec.train)
    optimizer = optimizer_of_run(spec.train, session.resume, precision)
    account = Account()
    if session.resume is not None:
        scaled = precision.dtype is torch.float16
        check_resume(job, session.resume, data.manifest.digest, name, way, scaled)
        account = Account(samples=session.resume.samples_seen, order=session.resume.order)

    # ---- the model, its adapter, and the trainer around them --------------------------------------------------------
    session.phase(Phase.LOAD)
    source = find(model_of_run(spec.model, session.resume))
    tokenizer = load_tokenizer(source)
    session.phase(Phase.LOAD, 0, 2, "weights")  # each restarts the deadline of a slow disk or network
    whole = spec.train.mode == "full"
    preference = preference_of(spec.train)
    model, kind, kernels = _made(session, source, tokenizer, precision, unsloth)
    trainer = kind(
        model=model,
        args=_arguments(session, way, precision, optimizer),
        train_dataset=ids_dataset(data),
        data_collator=Collator(data, tokenizer.pad_token_id or 0, kernels.side_by_side)
        if preference is None
        else preference_collator(preference, data, tokenizer, spec.data.max_length),
        processing_class=tokenizer,
    )
    if isinstance(trainer, PreferenceTrainer) and preference is not None:
        trainer.prefer(preference, data, spec.data.max_length)
        if preference.method == "kto" and session.resume is None and (said := out_of_balance(preference, data)):
            session.notice(said, "warning")
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    # TRL turns the adapters of a quantised base to bf16, and loading a checkpoint turns them to fp32: a run would change
    # its precision at the first resume. The optimizer does not exist yet, so it will follow.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and not whole:
            parameter.data = parameter.data.float()
    if spec.init_adapter is not None and session.resume is None:
        begin_from(trainer.model, Path(spec.init_adapter))  # here, where nothing rounds its weights any more

    # ---- train ------------------------------------------------------------------------------------------------------
    if kernels.compiled:
        compile_layers(trainer.model)
    header = _header(name, precision, account, job, optimizer, source.commit, kernels)
    boundary = Boundary(session, account, header)
    step = session.resume.step if session.resume is not None else 0
    skip, memory = way.micro_batches_before(step, job.accumulation), Memory(device == "cuda")
    trainer.attach(session, boundary, skip, arrangement(spec, data), data, memory)
    if not whole and (session.owes(way.total_steps) or session.ended(way.total_steps)):
        trainer.model.load_adapter(job.resume_from, "default", is_trainable=True)
    session.make_up(way.total_steps, trainer.score)
    if session.resume is not None and session.ended(way.total_steps):
        # Died between its last checkpoint and its end. The Trainer would do one step more before it looks.
        loss = session.resume.loss
    else:
        try:
            trainer.train(resume_from_checkpoint=job.resume_from)
        except Exception:
            session.taken_by_others(memory.taken())
            raise
        if boundary.stopped:
            return None
        step, loss = boundary.progress.step, boundary.progress.loss

    # ---- the result -------------------------------------------------------------------------------------------------
    return _result(session, trainer, tokenizer, account, step, loss)


def _made(
    session: Session, source: Source, tokenizer: PreTrainedTokenizerBase, precision: Precision, unsloth: bool
) -> tuple[PreTrainedModel | PeftModel, type[ExactTrainer], Kernels]:
    """The model to be trained, on its device, the trainer for it, and how it computes."""
    job, spec = session.job, session.job.spec
    if unsloth:
        from backpropagate_backends.unsloth_model import UnslothTrainer, load_with_adapter

        checkpointing = checkpointing_of_run(job.gradient_checkpointing, spec.train, precision.device)
        return load_with_adapter(source, precision, spec, checkpointing), UnslothTrainer, Kernels(UNSLOTH, False)
    kind = ExactTrainer if spec.train.method == "sft" else PreferenceTrainer
    if spec.train.mode == "full":
        whole = load_whole(source, job.resume_from, precision, tokenizer, spec.train, session.notice)
        return whole, kind, fit_kernels(whole, spec, precision.device, job.kernels, session.notice)
    base = load_model(source, precision, tokenizer, session.notice)
    kernels = fit_kernels(base, spec, precision.device, job.kernels, session.notice)
    session.phase(Phase.LOAD, 1, 2, "adapter")
    return add_adapter(base, spec.lora, spec.train.seed), kind, kernels


def _arguments(session: Session, way: Course, precision: Precision, optimizer: str) -> SFTConfig:
    job, train = session.job, session.job.spec.train
    cuda = precision.device == "cuda"
    checkpointing = checkpointing_of_run(job.gradient_checkpointing, train, precision.device)
    # transformers 5.23 renamed the field and warns about the old one; 5.17 does not know the new one.
    fields = {field.name for field in dataclasses.fields(SFTConfig)}
    name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return SFTConfig(
        output_dir=str(session.staging),
        # position: B x accumulation is constant over all attempts; nothing dropped, nothing skipped, nothing grouped
        max_steps=way.total_steps,
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.accumulation,
        auto_find_batch_size=False,
        dataloader_drop_last=False,
        ignore_data_skip=False,
        train_sampling_strategy="random",
        seed=train.seed,
        data_seed=train.seed,
        # optimisation
        optim=optimizer,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        use_cpu=not cuda,
        bf16=precision.dtype is torch.bfloat16,
        fp16=precision.dtype is torch.float16,
        # saving and reporting are the session's
        save_strategy="no",
        save_total_limit=None,
        save_only_model=False,
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        push_to_hub=False,
        # data: prepared already, masked already
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        packing=False,
        dataloader_num_workers=DATALOADER_WORKERS,
        dataloader_pin_memory=cuda,
        **{name: checkpointing},
    )


def _header(
    name: str,
    precision: Precision,
    account: Account,
    job: TrainJob,
    optimizer: str,
    revision: str,
    kernels: Kernels,
) -> Header:
    notes = list(kernels.notes)
    if job.spec.lora.dropout > 0:
        notes.insert(0, "dropout: after a halved batch the samples stay the same, the masks do not")
    if precision.device == "cpu":
        return Header(name, "cpu", precision.label, account.samples, optimizer, revision, notes=tuple(notes))
    card = torch.cuda.get_device_properties(0)
    return Header(
        backend=name,
        device=f"cuda:0 {card.name}",
        precision=precision.label,
        samples_seen=account.samples,
        optimizer=optimizer,
        model_revision=revision,
        gpu_uuid=f"GPU-{card.uuid}",
        device_memory=card.total_memory >> 20,
        notes=tuple(notes),
    )


def _result(
    session: Session,
    trainer: ExactTrainer,
    tokenizer: PreTrainedTokenizerBase,
    account: Account,
    step: int,
    loss: float | None,
) -> TrainResult:
    session.phase(Phase.FINISH)
    folder, best = session.staging / "adapter", session.best()
    if best is None and not all_finite(trainer.model):
        raise LossDivergedError(f"after step {step} the adapter holds weights that are not finite")
    if best is not None:
        copy_trained(best, folder)
    else:
        save_trained(trainer.model, str(folder))
    tokenizer.save_pretrained(str(folder))
    return TrainResult(
        adapter=str(folder),
        step=step,
        samples_seen=account.samples,
        order=account.order,
        final_loss=loss if loss is None or math.isfinite(loss) else None,
        digest=digest_of(folder),
    )
