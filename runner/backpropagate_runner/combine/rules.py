"""The rules by which several runs' adapters become one: what each does, and how much the newest run counts in it.

With lambda_i the coefficient of run i (lambda_1 = 1), whatever is interpolated follows

    M_i = M_{i-1} + lambda_i (X_i - M_{i-1}),   hence   M_N = sum_i w_i X_i,   w_i = lambda_i prod_{j>i} (1 - lambda_j)

| rule         | lambda_i (before the floor) | X                        | A of the result | the next run begins with |
| slao         | 1 / sqrt(i)                 | B                        | the newest      | Q^T of A, and B          |
| slao-product | 1 / sqrt(i)                 | the product B A          | of the product  | Q^T of A, and B          |
| ema          | a constant                  | B                        | the newest      | the newest run's adapter |
| average      | 1 / i                       | the product B A          | of the product  | the newest run's adapter |
| ties, dare   | 1 / i                       | products, made sparse    | of the product  | the newest run's adapter |
| none         | 1                           |                          | the newest      | the newest run's adapter |

A floor f makes lambda_i = max(lambda_i, f): the newest run never counts for less. ties and dare have no floor: their runs
are peers. In B's increments d_i = B_i - B_{i-1} the result is sum_i c_i d_i with c_i = 1 - prod_{j>=i} (1 - lambda_j), so
the newest increment counts exactly lambda_N, and the oldest almost wholly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from backpropagate_protocol.errors import UserInputError
from backpropagate_protocol.jobs import CombineJob


class Rule(StrEnum):
    SLAO = "slao"
    SLAO_PRODUCT = "slao-product"
    EMA = "ema"
    AVERAGE = "average"
    TIES = "ties"
    DARE = "dare"
    NONE = "none"

    @property
    def orthonormal(self) -> bool:
        """Whether the next run begins from an orthonormal A."""
        return self in (Rule.SLAO, Rule.SLAO_PRODUCT)

    @property
    def of_products(self) -> bool:
        return self in (Rule.SLAO_PRODUCT, Rule.AVERAGE, Rule.TIES, Rule.DARE)

    @property
    def has_state(self) -> bool:
        """Whether a merge goes on from the one before it. The others look at all runs every time."""
        return self in (Rule.SLAO, Rule.SLAO_PRODUCT, Rule.EMA)


@dataclass(frozen=True, slots=True)
class Wishes:
    """A rule with its numbers."""

    rule: Rule
    floor: float
    weight: float
    density: float
    seed: int

    @classmethod
    def of(cls, job: CombineJob) -> Wishes:
        """Raises UserInputError [INPUT_VALIDATION_FAILED]."""
        try:
            rule = Rule(job.rule)
        except ValueError as error:
            raise _invalid(f"there is no merge rule {job.rule!r}; there are {', '.join(Rule)}") from error
        if not 0 <= job.floor <= 1:
            raise _invalid(f"the floor of a merge is a number from 0 to 1, not {job.floor}")
        if not 0 < job.weight <= 1:
            raise _invalid(f"the weight of the newest run is more than 0 and at most 1, not {job.weight}")
        if not 0 < job.density <= 1:
            raise _invalid(f"the density is more than 0 and at most 1, not {job.density}")
        if not job.adapters:
            raise _invalid("there is no adapter to merge")
        return cls(rule, job.floor, job.weight, job.density, job.seed)

    def coefficient(self, run: int) -> float:
        """lambda of run 1, 2, …"""
        match self.rule:
            case Rule.SLAO | Rule.SLAO_PRODUCT:
                return max(1 / math.sqrt(run), self.floor)
            case Rule.EMA:
                return 1.0 if run == 1 else max(self.weight, self.floor)
            case Rule.AVERAGE:
                return max(1 / run, self.floor)
            case Rule.TIES | Rule.DARE:
                return 1 / run
            case Rule.NONE:
                return 1.0
            case _:
                assert_never(self.rule)

    def coefficients(self, runs: int) -> tuple[float, ...]:
        return tuple(self.coefficient(run) for run in range(1, runs + 1))

    def decides_like(self, rule: str, floor: float, weight: float) -> bool:
        """Whether a state made with these numbers is one that this rule would have made. What it does not use may differ."""
        return rule == self.rule and floor == self.floor and (self.rule is not Rule.EMA or weight == self.weight)


def closed_form(coefficients: Sequence[float]) -> tuple[float, ...]:
    """w_i: how much of each run is in the result after the last."""
    weights: list[float] = []
    for coefficient in coefficients:
        weights = [weight * (1 - coefficient) for weight in weights]
        weights.append(coefficient)
    return tuple(weights)


def _invalid(message: str) -> UserInputError:
    return UserInputError(message, code="INPUT_VALIDATION_FAILED")
