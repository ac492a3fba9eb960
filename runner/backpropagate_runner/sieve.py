"""What is dropped before anything is turned into tokens: repetitions, answers that are no use to the method."""

from __future__ import annotations

from array import array
from collections import Counter

from backpropagate_protocol.errors import InvalidSettingError
from backpropagate_protocol.prepared import PLAIN
from backpropagate_protocol.spec import DataSpec
from backpropagate_runner.duplicates import EXACT, NEAR, Duplicates
from backpropagate_runner.example import Example, Labelled, Pair
from backpropagate_runner.formats import kind_of


class Sieve:
    """Shown every good row of a source in the file's order. `positions`: of the rows that are dropped, ascending."""

    def __init__(self, data: DataSpec) -> None:
        if data.dedup not in ("none", EXACT, NEAR):
            raise InvalidSettingError(
                f"there is no way called {data.dedup!r} to find duplicates; choose {EXACT} or {NEAR}"
            )
        self._plain = kind_of(data.method) == PLAIN
        self._duplicates = Duplicates(data.dedup) if data.dedup != "none" else None
        self.dropped: Counter[str] = Counter()
        self.positions = array("q")

    @property
    def compares_parts(self) -> bool:
        """Whether it must see the rows of the other part, too: a repetition in both would make the scores of those that
        are held out look better than they are."""
        return self._duplicates is not None

    def drops(self, example: Example, position: int, *, wanted: bool = True) -> bool:
        """Of a row that is not `wanted`, which belongs to the other part, only remembers it."""
        reason = self._reason(example)
        if reason is not None and wanted:
            self.dropped[reason] += 1
            self.positions.append(position)
        return reason is not None

    def _reason(self, example: Example) -> str | None:
        if isinstance(example, Pair) and example.chosen == example.rejected:
            return "equal_answers"
        if isinstance(example, Labelled) and self._plain and not example.good:
            return "bad_answer"
        return self._duplicates.seen(example) if self._duplicates is not None else None
