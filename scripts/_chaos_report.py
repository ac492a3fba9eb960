"""The figures of a chaos gate as Markdown, each with its goal and whether that is met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import _bench_memory
from _bench_figure import machine
from _chaos_seen import Seen, Sort

_MIB = 2**20


def report(seen: Seen, hang_floor: float, seconds: float) -> str:
    """Goals of time are those of an idle machine; what is loaded is slower."""
    total, unhalved = sum(seen.faults.values()), seen.compared - seen.halved
    rows = [
        _row("faults", f"{total:,} in {seen.runs:,} runs, {seconds / 60:.0f} min"),
        _row("children, supervisors", f"{seen.children:,}, {seen.supervisors:,}"),
        _row("problems", str(len(seen.problems)), "0", not seen.problems),
        _row(
            "samples exactly as planned",
            f"{seen.same_samples:,} of {seen.runs:,} runs",
            "all",
            seen.same_samples == seen.runs,
        ),
        _row(
            "weights identical to the bit where nothing was halved",
            f"{seen.identical:,} of {unhalved:,} runs",
            "all",
            seen.identical == unhalved,
        ),
        _row("identical to the bit although halved", f"{seen.halved_and_identical:,} of {seen.halved:,} runs"),
        _row("runs without a result to compare", f"{seen.runs - seen.compared:,}", "0", seen.compared == seen.runs),
        _none("orphans, zombies, held locks, files left", seen.broken(Sort.LEFT_BEHIND)),
        _row("checkpoints committed, put aside as damaged", f"{seen.committed:,}, {seen.put_aside:,}"),
        _none("checkpoints lost, or none that loads", seen.broken(Sort.CHECKPOINT)),
        _none("faults not told in the journal, lines lost", seen.broken(Sort.UNTOLD)),
        _row(
            "the supervisor's open descriptors, growth",
            f"at most {max(seen.descriptors)}" if seen.descriptors else "not seen",
            "0",
            max(seen.descriptors) <= 0 if seen.descriptors else None,
        ),
        _time("a killed child noticed after", seen.noticed, "p99 ≤ 50 ms", _high(seen.noticed), 0.05),
        _time("a child outlives its killed supervisor by", seen.orphaned, "≤ 100 ms", _most(seen.orphaned), 0.1),
        _time(f"a hang noticed after (deadline {hang_floor:.0f} s)", seen.hang_noticed, in_seconds=True),
        _time("from there until the child is gone", seen.buried, "≤ 10 s", _most(seen.buried), 10.0, in_seconds=True),
        _time("fault to first new step, back-off not counted", seen.recovered),
        _time("the same with a standby", seen.taken_over),
        _row("steps lost at a fault", _lost(seen)),
        _row(
            f"the supervisor's {_bench_memory.WORDS}",
            f"at most {max(seen.memory, default=0) / _MIB:.1f} MiB",
            "≤ 40 MiB",
            max(seen.memory) <= 40 * _MIB if seen.memory else None,
        ),
        _row("ended because a fault came twice at a step, gone on with", f"{seen.repeated:,}"),
        _row("supervisors asked to end before they listened, gone on with", f"{seen.unheard:,}"),
    ]
    table = "\n".join(rows)
    besides = f" Besides, what ends nothing: {_kinds(seen.noise)}." if seen.noise else ""
    return f"{machine('at the end')}\n\n| what | measured | goal | |\n|---|---|---|---|\n{table}\n\n{_kinds(seen.faults)}.{besides}"


def _row(what: str, value: str, goal: str = "", met: bool | None = None) -> str:
    verdict = {None: "", True: "met", False: "**short**"}[met]
    return f"| {what} | {value} | {goal} | {verdict} |"


def _none(what: str, count: int) -> str:
    return _row(what, str(count), "0", count == 0)


def _time(
    what: str,
    values: Sequence[float],
    goal: str = "",
    judged: float | None = None,
    limit: float = 0.0,
    *,
    in_seconds: bool = False,
) -> str:
    """`judged`: which of the values the goal speaks of; None: there was none, or there is no goal."""
    return _row(what, _times(values, in_seconds=in_seconds), goal, None if judged is None else judged <= limit)


def _times(values: Sequence[float], *, in_seconds: bool) -> str:
    if not values:
        return "none"
    at = (statistics.median(values), percentile(values, 0.99), max(values))
    middle, high, top = (f"{value:.1f}" if in_seconds else f"{1000 * value:.0f}" for value in at)
    return f"median {middle}, p99 {high}, most {top} {'s' if in_seconds else 'ms'} ({len(values):,})"


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _high(values: Sequence[float]) -> float | None:
    return percentile(values, 0.99) if values else None


def _most(values: Sequence[float]) -> float | None:
    return max(values, default=None)


def _lost(seen: Seen) -> str:
    if not seen.steps_lost:
        return "none"
    return f"mean {statistics.mean(seen.steps_lost):.1f}, most {max(seen.steps_lost)}"


def _kinds(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()) if count)
