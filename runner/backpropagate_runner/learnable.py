"""Whether anything can be learnt from what a data set came to as tokens; if not, why not, and what to do."""

from __future__ import annotations

from collections.abc import Mapping

from backpropagate_protocol.errors import DatasetError
from backpropagate_protocol.prepared import LABELLED
from backpropagate_runner.dropped import in_words
from backpropagate_runner.tokenise import Tokeniser

_BOUNDED = ("short_trace", "long_trace", "cut_trace", "too_short", "too_long")


def check_learnable(name: str, tokeniser: Tokeniser, samples: int, dropped: Mapping[str, int]) -> None:
    """Raises DatasetError for a loss mask that cannot be right, and where no row is left."""
    if tokeniser.train_on != "all" and tokeniser.chat_tokens and tokeniser.chat_trained == tokeniser.chat_tokens:
        raise DatasetError(
            f"{name}: every token of the conversations would carry loss, the user's turns too",
            suggestion="The model's chat template marks no assistant turns; use a model whose template does, "
            "or --train-on all if this is what you want.",
        )
    if samples:
        return
    if {reason for reason, count in dropped.items() if count} <= {"unlearnable", "bad_row"}:
        raise DatasetError(
            f"{name}: no token would carry loss within {tokeniser.length} tokens of any row",
            suggestion="Raise --max-length if the questions alone fill it; else the model's chat template marks no "
            "assistant turns, and another model or --train-on all is needed.",
        )
    if dropped.get("no_trace") and not any(dropped.get(reason) for reason in _BOUNDED):
        raise DatasetError(
            f"{name}: no row is left. Left out: {in_words(dropped)}",
            suggestion="Each answer must have <think>…</think> in it; leave --reasoning-trace out for answers without.",
        )
    raise DatasetError(
        f"{name}: no row is left. Left out: {in_words(dropped)}",
        suggestion="Widen the bounds that left them out, or use other data.",
    )


def one_sided(name: str, tokeniser: Tokeniser) -> str | None:
    """What to tell of labelled answers that are all of one kind."""
    bad, good = tokeniser.labels
    if tokeniser.kind != LABELLED or (bad and good):
        return None
    return f"{name}: every answer is labelled as a {'good' if good else 'bad'} one; kto learns best from both kinds"
