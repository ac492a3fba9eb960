"""The losses of the preference methods, as functions of the log-probabilities of answers.

Each gives one loss per sample and never a mean: what a sample contributes must not hang on which others shared its
micro-batch. The sums are divided by the samples of the whole optimizer step, so a halved batch has the same loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch.nn.functional import logsigmoid

from backpropagate_protocol.spec import TrainSpec

Method = Literal["orpo", "simpo", "dpo", "kto"]
METHODS: tuple[Method, ...] = ("orpo", "simpo", "dpo", "kto")

_BETA: dict[Method, float] = {"orpo": 0.1, "simpo": 2.0, "dpo": 0.1, "kto": 0.1}
_GAMMA = 1.0

_MINUS_LN2 = -0.6931471805599453
_SURE = -1e-6  # a probability of 1 has infinite odds

Measures = dict[str, tuple[torch.Tensor, torch.Tensor]]  # name → (sum, of how many)


@dataclass(frozen=True, slots=True)
class Preference:
    """What a run is told to prefer by, complete: nothing is left to a default of a library."""

    method: Method
    beta: float
    gamma: float = 0.0  # simpo
    desirable: float = 1.0  # kto: weights
    undesirable: float = 1.0

    @property
    def has_reference(self) -> bool:
        """Whether the model is held to what it was before: the base with its adapter switched off."""
        return self.method in ("dpo", "kto")

    @property
    def learns_chosen(self) -> bool:
        """Whether the chosen conversation, prompt included, is also learnt as in supervised fine-tuning."""
        return self.method == "orpo"


def preference_of(train: TrainSpec) -> Preference | None:
    """None for a method that needs no preferences."""
    if train.method not in METHODS:
        return None
    method: Method = train.method
    return Preference(
        method=method,
        beta=_BETA[method] if train.beta is None else train.beta,
        gamma=_GAMMA if train.gamma is None else train.gamma,
        desirable=train.desirable_weight,
        undesirable=train.undesirable_weight,
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model says of a batch's answers. `sums` and `tokens`, each (rows,): log-probability of the whole answer in nats,
    and how many tokens of it were foretold (at least 1). Pairs: the chosen ones first, then the rejected ones.

    nll: over every token of the chosen conversations, summed, if they are learnt; else 0. balance: of the experts, the mean
    loss of a model that has some and is told to load them evenly.
    """

    sums: torch.Tensor
    tokens: torch.Tensor
    nll: torch.Tensor
    balance: torch.Tensor | None = None

    @property
    def means(self) -> torch.Tensor:
        return self.sums / self.tokens


@dataclass(frozen=True, slots=True)
class Judged:
    """losses: (samples,) float32. `measures` are sums, without gradient."""

    losses: torch.Tensor
    measures: Measures


def judge(
    preference: Preference,
    said: Answers,
    reference: Answers | None,
    desirable: torch.Tensor | None,
    divergence: torch.Tensor | None,
) -> Judged:
    """reference: dpo and kto. desirable: kto, (rows,) bool. divergence: kto, a scalar of the whole optimizer step."""
    beta = preference.beta
    match preference.method:
        case "orpo":
            chosen, rejected = said.means.chunk(2)
            odds = log_odds_ratio(chosen, rejected)
            return _pairs(-beta * logsigmoid(odds), beta * chosen, beta * rejected)
        case "simpo":
            chosen, rejected = (beta * said.means).chunk(2)
            return _pairs(-logsigmoid(chosen - rejected - preference.gamma), chosen, rejected)
        case "dpo":
            assert reference is not None
            chosen, rejected = (beta * (said.sums - reference.sums)).chunk(2)
            return _pairs(-logsigmoid(chosen - rejected), chosen, rejected)
        case "kto":
            assert reference is not None
            assert desirable is not None
            assert divergence is not None
            return _labelled(preference, said.sums - reference.sums, desirable, divergence)
        case _:
            assert_never(preference.method)


def log_odds_ratio(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """(pairs,): log of odds(chosen) / odds(rejected), from mean log-probabilities per token."""
    return (chosen - rejected) - (_log_of_the_rest(chosen) - _log_of_the_rest(rejected))


def _log_of_the_rest(log: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(log)), exact at both ends. Both branches stay finite: the gradient of the one not taken is 0 x it."""
    log = log.clamp(max=_SURE)
    near_one, near_zero = log.clamp(min=_MINUS_LN2), log.clamp(max=_MINUS_LN2)
    return torch.where(log > _MINUS_LN2, (-near_one.expm1()).log(), (-near_zero.exp()).log1p())


def _pairs(losses: torch.Tensor, chosen: torch.Tensor, rejected: torch.Tensor) -> Judged:
    chosen, rejected = chosen.detach(), rejected.detach()
    pairs = torch.tensor(float(len(chosen)), device=chosen.device)
    return Judged(
        losses,
        {
            "accuracy": ((chosen > rejected).float().sum(), pairs),
            "chosen_reward": (chosen.sum(), pairs),
            "rejected_reward": (rejected.sum(), pairs),
        },
    )


def _labelled(
    preference: Preference, ratios: torch.Tensor, desirable: torch.Tensor, divergence: torch.Tensor
) -> Judged:
    """A good answer is worth what it gained over the average drift of the model, a bad one what it lost."""
    gained = preference.beta * (ratios - divergence)
    values = torch.sigmoid(torch.where(desirable, gained, -gained))
    good = desirable.float()
    weights = good * preference.desirable + (1 - good) * preference.undesirable
    rewards, rows = preference.beta * ratios.detach(), torch.ones_like(good).sum()
    return Judged(
        weights * (1 - values),
        {
            "accuracy": (((gained.detach() > 0) == desirable).float().sum(), rows),
            "chosen_reward": ((rewards * good).sum(), good.sum()),
            "rejected_reward": ((rewards * (1 - good)).sum(), (1 - good).sum()),
            "kl": (divergence.detach() * rows, rows),
        },
    )
