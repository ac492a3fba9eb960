"""The record of a fault as a person reads it. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from backpropagate.keep.faults import FaultRecord
from backpropagate.watch.view import duration

IN_FULL = 5  # of the newest
_STACK_LINES = 40
_LABEL = 11


def lines(records: Sequence[FaultRecord], folder: str, *, in_full: int = IN_FULL) -> list[str]:
    """All of them, the oldest first; a line each for those before the newest `in_full`. `folder`: where they lie."""
    shown = [_title(record) for record in records[:-in_full]]
    if shown:
        shown.append(f"  in full in {folder}")
    for record in records[-in_full:]:
        shown += [_title(record), *(f"  {line}" for line in _body(record))]
    return shown


def _title(record: FaultRecord) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.time))
    where = f"in {record.stage}" if record.stage else f"at step {record.step}, in {record.phase or 'its start'}"
    return f"fault {record.number}, {when}, attempt {record.attempt} {where}: {record.code}"


def _body(record: FaultRecord) -> Iterator[str]:
    yield from _labelled("what", *record.message.rstrip().split("\n"))
    yield from _labelled("then", *record.also)
    yield from _labelled("process", _process(record), record.meaning)
    if record.ended_by:
        why = "for that" if record.ended_by == record.message else record.ended_by
        yield from _labelled("ended by", f"the supervisor: {why}")
    yield from _labelled("memory", _memory(record))
    yield from _labelled("GPU says", *record.card)
    yield from _labelled("kernel says", *record.kernel)
    silent = ("none since its imports",) if record.earlier_lines and not record.stacks else ()
    yield from _labelled("last lines", *(record.last_lines or silent))
    yield from _labelled("stacks", *_shortened(record.stacks))
    yield from _labelled("done", record.done or "nothing: the supervisor was gone, too")
    yield from _labelled("to do", record.advice)


def _labelled(label: str, *texts: str) -> Iterator[str]:
    for text in texts:
        if text:
            yield f"{label:{_LABEL}}  {text}"
            label = ""


def _process(record: FaultRecord) -> str:
    if not record.pid:
        return record.death
    code = f" (exit status {record.exit_code})" if record.exit_code is not None and record.exit_code < 0 else ""
    return f"{record.pid}, alive for {duration(record.seconds)}, {record.death}{code}"


def _memory(record: FaultRecord) -> str:
    amounts = (
        ("at most {:,} MiB of the machine's", record.memory),
        ("at most {:,} MiB of the GPU's", record.device_memory),
        ("{:,} MiB of the GPU's reserved", record.device_reserved),
        ("{:,} MiB were asked for", record.needed),
        ("{:,} MiB were free", record.free),
    )
    return ", ".join(text.format(amount) for text, amount in amounts if amount)


def _shortened(stacks: str) -> list[str]:
    all_lines = stacks.split("\n") if stacks else []
    left_out = len(all_lines) - _STACK_LINES
    return all_lines if left_out <= 0 else [*all_lines[:_STACK_LINES], f"… and {left_out} more lines in its file"]
