"""Compares what two models expect after the same tokens: the logits row by row, and the answers token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from backpropagate_protocol.measured import Check
from backpropagate_protocol.reference import Answered
from backpropagate_runner.export.prove_bounds import Bounds

Rows = NDArray[np.float32]

_FEW = 4  # positions, or answers: with fewer that say anything, nothing is judged


@dataclass
class Comparison:
    """Takes one prompt after the other, then judges. Logits are compared without their common offset, which softmax
    does not see."""

    bounds: Bounds
    prompts: int = 0
    positions: int = 0
    _error: float = 0.0
    _size: float = 0.0
    _kl: float = 0.0
    _clear: int = 0
    _agreed: int = 0
    _equal: int = 0
    _different: list[str] = field(default_factory=list)

    def add(self, prompt: Answered, trained: Rows, exported: Rows, answer: Sequence[int]) -> None:
        """`trained`, `exported`: the prompt's rows of both. `answer`: what the exported one says when, up to there, it has
        said what the trained one did; as long as the trained answer, or shorter if it ended earlier."""
        width = min(trained.shape[1], exported.shape[1])  # one of them may have rows that no token uses
        one, other = trained[:, :width].astype(np.float64), exported[:, :width].astype(np.float64)
        self.prompts += 1
        self.positions += len(one)
        centred = one - one.mean(1, keepdims=True)
        self._size += float((centred**2).sum())
        self._error += float(((centred - other + other.mean(1, keepdims=True)) ** 2).sum())
        one, other = _log_softmax(one), _log_softmax(other)
        self._kl += float((np.exp(one) * (one - other)).sum())
        best = np.sort(np.partition(one, -2, axis=1)[:, -2:], axis=1)
        clear = best[:, 1] - best[:, 0] > self.bounds.tie
        self._clear += int(clear.sum())
        self._agreed += int((one.argmax(1) == other.argmax(1))[clear].sum())
        self._compare(prompt, answer)

    def _compare(self, prompt: Answered, answer: Sequence[int]) -> None:
        for at, token in enumerate(prompt.answer):
            if at < len(answer) and answer[at] == token:
                continue
            if prompt.gaps[at] > self.bounds.tie:
                said = answer[at] if at < len(answer) else "nothing"
                self._different.append(f"{prompt.turns[-1][1][:40]!r}: token {at} is {said} instead of {token}")
            return  # nearly a tie: from here on the two have a right to differ
        self._equal += 1

    def checks(self) -> list[Check]:
        bounds = self.bounds
        checks = []
        if bounds.error is not None:
            error = float(np.sqrt(self._error / self._size)) if self._size else 0.0
            checks.append(Check("relative_error", error <= bounds.error, error, bounds.error))
        kl = max(self._kl / self.positions, 0.0) if self.positions else 0.0  # below 0 is rounding
        checks.append(Check("kl", kl <= bounds.kl, kl, bounds.kl, f"nats, {self.positions} positions"))
        checks.append(self._share("agreement", self._agreed, self._clear, bounds.agreement, "clear positions"))
        judged = self._equal + len(self._different)
        detail = "; ".join(("answers", *self._different[:3]))
        checks.append(self._share("answers", self._equal, judged, bounds.answers, detail))
        return checks

    @staticmethod
    def _share(name: str, agreed: int, judged: int, bound: float, what: str) -> Check:
        if judged < _FEW:
            return Check(name, True, None, bound, f"too few to judge: {judged} {what}")
        share = agreed / judged
        return Check(name, share >= bound, share, bound, f"{agreed} of {judged} {what}")


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = rows - rows.max(1, keepdims=True)
    log: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return log
