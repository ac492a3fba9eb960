"""The rules that merge what a module adds, B A, and not its factors: slao-product, average, ties and dare.

Products have no gauge: (B G^-1)(G A) is the same for every G, so two runs can be interpolated whatever became of their A.
Each result is cut to the module's rank r, and so costs something that the factors' rules do not lose.

    slao-product   P_i = cut( (1 - lambda_i) P_{i-1} + lambda_i B_i A_i ), the state being P_i's two factors in float32
    average        cut( sum_i w_i B_i A_i ) over all runs at once
    ties, dare     cut( sparse merge over all runs at once ), see sparse.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from backpropagate_runner.combine.inputs import Module
from backpropagate_runner.combine.low_rank import F32, Term, cut
from backpropagate_runner.combine.previous import State
from backpropagate_runner.combine.rules import Rule, Wishes, closed_form
from backpropagate_runner.combine.sparse import Dare, Ties, rows_of_a_block, thresholds, transposed
from backpropagate_runner.combine.streamed_svd import cut_rows
from backpropagate_runner.export.adapter import as_float


@dataclass
class Factors:
    """One module's merged A and B, computed when the first of them is asked for and forgotten with the second."""

    module: Module
    wishes: Wishes
    state: State
    budget: int  # bytes that the sparse rules' blocks may take
    tick: Callable[[], None]
    _made: dict[str, F32] = field(default_factory=dict)

    def A(self) -> F32:
        return self._take("A")

    def B(self) -> F32:
        return self._take("B")

    def _take(self, side: str) -> F32:
        if side not in self._made:
            self._made["A"], self._made["B"] = self._merged()
        return self._made.pop(side)

    def _merged(self) -> tuple[F32, F32]:
        if len(self.module.runs) == 1:
            return as_float(self.module.newest.A), as_float(self.module.newest.B)
        coefficients = self.wishes.coefficients(len(self.module.runs))
        if self.wishes.rule is Rule.SLAO_PRODUCT:
            return self._in_turn(coefficients)
        if self.wishes.rule is Rule.AVERAGE:
            return cut(
                [term for term in self._terms(closed_form(coefficients)) if term.coefficient], self.module.newest.r
            )
        return self._sparse()

    def _in_turn(self, coefficients: Sequence[float]) -> tuple[F32, F32]:
        A: F32 | None = None
        B: F32 | None = None
        if self.state.runs:
            newest = self.module.newest
            A, B = (as_float(self.state.tensors[tensor.name]) for tensor in (newest.A, newest.B))
        for number in range(self.state.runs + 1, len(self.module.runs) + 1):
            run, coefficient = self.module.runs[number - 1], coefficients[number - 1]
            new = as_float(run.A), as_float(run.B)
            if A is None or B is None or coefficient >= 1:
                A, B = new
                continue
            before = Term((1 - coefficient) * self.module.rescale(number), B, A)
            A, B = cut([before, Term(coefficient, new[1], new[0])], run.r)
        assert A is not None
        assert B is not None
        return A, B

    def _terms(self, weights: Sequence[float]) -> list[Term]:
        """All in the units of the newest run."""
        scale = self.module.newest.scale
        return [
            Term(weight * (run.scale / scale), as_float(run.B), as_float(run.A))
            for weight, run in zip(weights, self.module.runs, strict=True)
        ]

    def _sparse(self) -> tuple[F32, F32]:
        terms = self._terms([1.0] * len(self.module.runs))
        wide = terms[0].A.shape[1] > terms[0].B.shape[0]
        if wide:  # the smaller side shall be the columns
            terms = transposed(terms)
        step = rows_of_a_block(terms[0].A.shape[1], len(terms), self.budget)
        if self.wishes.rule is Rule.DARE:
            matrix: Dare | Ties = Dare(terms, step, self.wishes.density, self.wishes.seed, self.module.name)
        else:
            matrix = Ties(terms, step, thresholds(terms, step, self.wishes.density, self.tick))
        A, B = cut_rows(matrix, self.module.newest.r, self.tick)
        return (B.T, A.T) if wide else (A, B)
