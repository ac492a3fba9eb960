"""One supervised fine-tuning on MLX, from top to bottom: check, load, train, hand over the adapter.

A loop of our own over mlx-lm's models and adapters and MLX's optimizers: mlx-lm's trainer saves weights only, and not
atomically, so that a resume would start the optimizer, the schedule and the order of samples over. The arithmetic is that
of the torch backends: a loss over all trained tokens of the accumulated batch, AdamW with bias correction, clipping by
the whole norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import msgspec
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.tuner.trainer import grad_checkpoint

from backpropagate_backends import mlx_lora, mlx_state
from backpropagate_backends.arrangement import arrangement
from backpropagate_backends.base import ADAPTER_WEIGHTS, GoOn, HeldOut, Session
from backpropagate_backends.course import Account, course
from backpropagate_backends.mlx_data import MicroBatch, losses_in, micro_batches
from backpropagate_backends.mlx_evaluate import held_out
from backpropagate_backends.mlx_model import (
    Base,
    check_same_precision,
    device_name,
    layers,
    load_base,
    parameters,
)
from backpropagate_backends.mlx_optimizer import make_optimizer, optimizer_of_run
from backpropagate_backends.mlx_tokenizer import copy_tokenizer
from backpropagate_backends.mlx_twin import check_arithmetic
from backpropagate_backends.mlx_warm import on_metal
from backpropagate_backends.mlx_wishes import check_wishes
from backpropagate_backends.model_source import find
from backpropagate_backends.same_run import check_same_run
from backpropagate_backends.sample_order import EpochOrders
from backpropagate_backends.schedules import learning_rate
from backpropagate_protocol.durable import file_entry
from backpropagate_protocol.errors import DatasetError, LossDivergedError
from backpropagate_protocol.messages import Phase, Progress, Started, TrainResult
from backpropagate_protocol.prepared import Prepared
from backpropagate_protocol.spec import ModelSpec

_MIB = 1 << 20
_ROUND = 32  # tokens; on Metal, where a kernel is compiled for each new shape

Gradients = dict[str, mx.array]
Step = Callable[[Gradients, mx.array, mx.array, mx.array], tuple[mx.array, Gradients]]


def train(session: Session, data: Prepared, name: str) -> TrainResult | None:
    """See `base.Backend.train`."""
    job, spec = session.job, session.job.spec

    # ---- what is to be done -----------------------------------------------------------------------------------------
    check_wishes(job)
    if len(data) == 0:
        raise DatasetError(f"{spec.data.source} has no rows to train on")
    way = course(spec.train, len(data))
    account = Account()
    begun = session.resume
    if begun is not None:
        check_same_run(job, begun, data.manifest.digest, name, way)
        account = Account(samples=begun.samples_seen, order=begun.order)

    # ---- the model, its adapter, and its optimizer ------------------------------------------------------------------
    session.phase(Phase.LOAD)
    source = find(_model_of_run(session))
    if begun is None:
        check_arithmetic(source, session.notice)
    session.phase(Phase.LOAD, 0, 2, "weights")  # each restarts the deadline of a slow disk or network
    base = load_base(source, spec.model, session.notice)
    check_same_precision(base, begun.precision if begun is not None else "")
    session.phase(Phase.LOAD, 1, 2, "adapter")
    mlx_lora.add_adapter(base, spec.lora, spec.train.seed, source.name)
    if spec.init_adapter is not None and begun is None:
        mlx_lora.begin_from(base, spec.lora, Path(spec.init_adapter))
    weights: Gradients = dict(sorted(tree_flatten(base.model.trainable_parameters())))
    optimizer_name = optimizer_of_run(spec.train.optim, begun)
    optimizer = make_optimizer(optimizer_name, spec.train)
    optimizer.init(weights)
    step, loss = 0, None
    if begun is not None:
        weights, optimizer.state, _ = mlx_state.load(Path(job.resume_from or ""), begun)
        step, loss = begun.step, begun.loss
    if job.gradient_checkpointing and spec.lora.dropout > 0:  # the supervisor turned it on, for want of memory
        session.notice(
            "layers are not computed again with dropout: MLX would draw other masks, and the gradients be wrong"
        )
    elif job.gradient_checkpointing:
        for layer in {type(layer): layer for layer in layers(base.model)}.values():
            grad_checkpoint(layer)  # of the whole class, for the life of this process
    base.model.train()

    def score(held: Prepared, go_on: GoOn) -> HeldOut | None:
        base.model.update(tree_unflatten(list(weights.items())))
        base.model.eval()
        try:
            return held_out(base.model, held, job.micro_batch, go_on)
        finally:
            base.model.train()

    session.make_up(way.total_steps, score)
    over = begun is not None and session.ended(way.total_steps)
    step_of = _step_function(base, compiled=spec.train.compile or on_metal())
    session.started(
        Started(
            backend=name,
            device=device_name(),
            step=step,
            total_steps=way.total_steps,
            samples_seen=account.samples,
            micro_batch=job.micro_batch,
            accumulation=job.accumulation,
            trainable_parameters=sum(value.size for value in weights.values()),
            parameters=parameters(base.model),
            precision=base.precision,
            device_memory=int(mx.device_info().get("memory_size", 0)) // _MIB if on_metal() else 0,
            notes=_notes(base, spec.lora.dropout),
            optimizer=optimizer_name,
            model_revision=source.commit,
        )
    )

    # ---- train ------------------------------------------------------------------------------------------------------
    about = mlx_lora.about(base, spec.lora, source.path)
    orders = EpochOrders(len(data), spec.train.seed, arrangement(spec, data))
    while not over and step < way.total_steps:
        session.before_step(step + 1)
        began = perf_counter()
        mx.reset_peak_memory()
        mlx_state.random_state(spec.train.seed, step + 1)
        rate = learning_rate(spec.train, step, way.total_steps)
        epoch, within = divmod(step, way.steps_per_epoch)
        samples = orders.take(epoch, within * way.effective_batch, way.effective_batch)
        share = mx.array(1.0 / max(1, losses_in(data, samples)))
        gradients, total = None, mx.array(0.0)
        for batch in micro_batches(data, samples, job.micro_batch, _ROUND if on_metal() else 1):
            part, found = _micro_step(step_of, weights, batch, share)
            gradients = found if gradients is None else tree_map(mx.add, gradients, found)
            total = total + part
            mx.eval(gradients, total)  # here, so that the activations of one micro-batch are gone before the next
            account.take(batch.consumed)
        assert gradients is not None
        norm = mx.sqrt(sum((mx.square(value).sum() for value in gradients.values()), mx.array(0.0)))
        if spec.train.max_grad_norm > 0:
            smaller = mx.minimum(spec.train.max_grad_norm / (norm + 1e-6), 1.0)
            gradients = {key: value * smaller for key, value in gradients.items()}
        optimizer.learning_rate = rate
        weights = optimizer.apply_gradients(gradients, weights)
        mx.eval(weights, optimizer.state, norm)
        step, loss = step + 1, cast(float, total.item())
        progress = Progress(
            step=step,
            total_steps=way.total_steps,
            samples_seen=account.samples,
            order=account.order,
            loss=loss,
            learning_rate=rate,
            grad_norm=cast(float, norm.item()),
            tokens=account.tokens,
            step_seconds=perf_counter() - began,
            epoch=account.samples / len(data),
            memory_used=mx.get_peak_memory() // _MIB,
            memory_reserved=(mx.get_active_memory() + mx.get_cache_memory()) // _MIB,
        )
        directive = session.step_done(progress, score)
        if directive.save:
            state = mlx_state.State(
                step=step,
                samples_seen=account.samples,
                order=account.order,
                seed=spec.train.seed,
                optimizer=optimizer_name,
            )
            _save(session, progress, mlx_state.copied(weights, about, optimizer, state))
        if directive.stop:
            return None
        over = directive.finish

    # ---- the result -------------------------------------------------------------------------------------------------
    session.phase(Phase.FINISH)
    best = session.best()
    if best is not None:
        weights = mlx_lora.load(best)
    if not all(mx.isfinite(value).all().item() for value in weights.values()):
        raise LossDivergedError(f"after step {step} the adapter holds weights that are not finite")
    folder = session.staging / "adapter"
    folder.mkdir()
    mlx_lora.save(folder, weights, about)
    copy_tokenizer(base.folder, folder)
    return TrainResult(
        adapter=str(folder),
        step=step,
        samples_seen=account.samples,
        order=account.order,
        final_loss=loss if loss is None or math.isfinite(loss) else None,
        digest=file_entry(folder / ADAPTER_WEIGHTS).sha256,
    )


def _step_function(base: Base, *, compiled: bool) -> Step:
    """Weights, ids, flags and share of one token → the micro-batch's part of the step's loss, and its gradients."""
    model = base.model

    def loss_of(weights: Gradients, ids: mx.array, flags: mx.array, share: mx.array) -> mx.array:
        model.update(tree_unflatten(list(weights.items())))
        logits = model(ids[:, :-1]).astype(mx.float32)
        part: mx.array = (nn.losses.cross_entropy(logits, ids[:, 1:]) * flags[:, 1:]).sum() * share
        return part

    function = mx.value_and_grad(loss_of)
    if not compiled:
        return function
    mx.enable_compile()
    return mx.compile(function, inputs=mx.random.state, outputs=mx.random.state)


def _micro_step(step: Step, weights: Gradients, batch: MicroBatch, share: mx.array) -> tuple[mx.array, Gradients]:
    return step(weights, batch.ids, batch.flags, share)


def _save(session: Session, progress: Progress, copy: mlx_state.Copy) -> None:
    session.keep(session.staging / f"checkpoint-{progress.step}", progress, copy.write)


def _model_of_run(session: Session) -> ModelSpec:
    """With the very weights that the checkpoint was trained on."""
    model, begun = session.job.spec.model, session.resume
    if begun is None or not begun.model_revision:
        return model
    return msgspec.structs.replace(model, revision=begun.model_revision)


def _notes(base: Base, dropout: float) -> tuple[str, ...]:
    notes = []
    if dropout > 0:
        notes.append("dropout: after a halved batch the samples stay the same, the masks do not")
    if base.quantised:
        notes.append(
            "the base is quantised by MLX: export with --format mlx, or name the full-precision base to export to"
        )
    return tuple(notes)
