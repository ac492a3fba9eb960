"""`estimate`: what a training will take, before it is begun; with `--calibrate`, corrected by ten real steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backpropagate.commands.flags import Command, from_table
from backpropagate.commands.train import TRAINING_KEYS
from backpropagate.screen import current
from backpropagate.wishes.options import Value

if TYPE_CHECKING:
    from backpropagate.judge.estimate import Estimate, Range
    from backpropagate_protocol.spec import RunSpec

# Wishes about how a run is kept alive, which change nothing of what it needs: read, so that a line that trains becomes one
# that estimates by another word.
_NO_MATTER = ("training.name", "safety.wait", "safety.grace", "safety.standby")


@click.command(cls=Command)
@from_table(*TRAINING_KEYS, hidden=_NO_MATTER)
@click.option("--detach", is_flag=True, hidden=True, expose_value=False)
@click.option("--gpu", metavar="NAME", help="A card that is not here, such as 'RTX 4080'; with --vram-gb.")
@click.option("--vram-gb", type=click.FloatRange(min=0.5), help="Reckon with a card of so much memory, in GB.")
@click.option("--calibrate", is_flag=True, help="Train ten real steps on the longest rows first, and remember them.")
def estimate(gpu: str | None, vram_gb: float | None, calibrate: bool, **given: Value) -> int:
    """Estimate memory, disk, time and energy of a training.

    Nothing is loaded or fetched: the base's config.json is enough. Takes every flag of `backprop train`.
    """
    from backpropagate.api.estimating import document, estimated
    from backpropagate.wishes.settings import Settings

    screen, settings = current(), Settings(given)
    spec, found = estimated(settings, gpu=gpu, vram_gb=vram_gb, calibrate=calibrate)
    screen.data(document(spec, found), "\n".join(_in_words(found, spec)))
    return 0


def _in_words(found: Estimate, spec: RunSpec) -> list[str]:
    from backpropagate.judge.estimate import MOST

    memory, setup = found.memory, found.setup
    weights = "4-bit" if setup.four_bit else "8-bit" if setup.fp8 else f"{8 * setup.bytes_per_weight}-bit"
    rows = [
        ("parameters", f"{_count(found.parameters)}, of which {_count(found.trained)} are trained"),
        ("batch", f"{found.micro_batch} x {found.accumulation} rows of at most {found.length} tokens"),
        ("weights", f"{_gb(memory.weights)} ({weights})"),
    ]
    rows += [("adapter", _gb(memory.adapter))] if memory.adapter else []
    rows += [
        ("gradients", _gb(memory.gradients)),
        ("optimizer", f"{_gb(memory.optimizer)} ({8 * setup.state} bits a parameter)"),
        ("activations", f"{_gb(memory.activations)} (checkpointing {'on' if setup.checkpointing else 'off'})"),
        ("logits", f"{_gb(memory.head)}, not at the same time as the layers' activations"),
        ("peak", f"{_gb(found.peak)}; {_where(found, spec)} {_between(found.vram, 2**30, 'GB')}"),
    ]
    if found.movable:
        rows.append(
            ("", f"of it {_gb(found.movable)}, the optimizer's, go to the host's memory where the card is full")
        )
    if found.gpu is not None:
        rows.append(("card", f"{found.gpu.name}, {found.gpu.free / 1024:.1f} of {found.gpu.total / 1024:.1f} GB free"))
        more = " and more" if found.largest == MOST < found.micro_batch * found.accumulation else ""
        largest = (
            f"micro-batches up to {found.largest}{more} fit"
            if found.largest
            else "not even a micro-batch of 1 surely fits"
        )
        rows.append(("fits", f"{'yes' if found.fits else 'perhaps not'}; {largest}"))
    elif spec.backend in ("auto", "cuda"):
        rows.append(
            ("card", "none is seen here; reckoned for a CUDA card (--vram-gb says how large, --backend cpu for none)")
        )
    space = found.disk
    parts = [f"checkpoints {_gb(space.checkpoints)}", f"result {_gb(space.result)}"]
    parts += [f"export {_gb(space.export)}"] if space.export else []
    rows.append(("disk", f"{_gb(space.total)}: {', '.join(parts)}"))
    if found.seconds is not None:
        rows.append(("time", f"{_duration(found.seconds)} for {found.steps} steps{_narrower(spec)}"))
    else:
        rows.append(("time", f"not known: {_why_no_time(found, spec)}"))
    if found.watt_hours is not None:
        rows.append(("energy", _between(found.watt_hours, 1000, "kWh")))
    place = "on this card" if found.gpu is not None else "on the CPU" if spec.backend == "cpu" else "here"
    basis = f"ten real steps {place}" if found.measured else "the base's configuration"
    rows.append(("by", basis if found.exact else f"{basis}; its family is not known here, so this is rough"))
    return [f"{name:12} {value}" for name, value in rows]


def _narrower(spec: RunSpec) -> str:
    return "" if spec.data.source else "; --data narrows it"


def _where(found: Estimate, spec: RunSpec) -> str:
    return "on the card" if found.gpu is not None or spec.backend in ("auto", "cuda") else "in all"


def _why_no_time(found: Estimate, spec: RunSpec) -> str:
    if found.steps is None:
        return "how many rows there are decides it; name them with --data"
    if found.gpu is None:
        card = " or a card (--gpu NAME --vram-gb N)" if spec.backend in ("auto", "cuda") else ""
        return f"it takes ten real steps (--calibrate, with --data){card} to say"
    return "name a card that is known, such as --gpu 'RTX 4080', or try ten real steps on yours (--calibrate)"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:,.2f} M"


def _gb(count: float) -> str:
    return f"{count / 2**30:.2f} GB" if count >= 2**30 / 10 else f"{count / 2**20:.1f} MB"


def _between(span: Range, unit: float, name: str) -> str:
    low, high = span.low / unit, span.high / unit
    digits = 1 if high >= 1 else 3
    return f"{low:.{digits}f} to {high:.{digits}f} {name}"


def _duration(span: Range) -> str:
    return f"{_words(span.low)} to {_words(span.high)}"


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
