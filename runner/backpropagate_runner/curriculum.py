"""Which rows are easy: a score without a model, from the tokens that are learnt.

A sample's score is the sum, over its tokens that carry loss, of -log of how often the token is learnt in this data set: long
answers in rare words are hard (the sentence rarity of Platanios et al., "Competence-based Curriculum Learning for Neural
Machine Translation", NAACL 2019). Of a pair both answers count.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import compress

Rows = Iterable["tuple[array[int], bytes]"]  # token ids and flags of one row after the other


def easy_first(rows: Callable[[], Rows], width: int) -> array[int]:
    """Every sample id, the easiest first; of equal scores, the first in the file. A sample is `width` rows. Reads them twice;
    memory for the vocabulary and 16 bytes a sample."""
    counts: Counter[int] = Counter()
    for ids, trained in rows():
        counts.update(compress(ids, trained))
    whole = math.log(counts.total() + 1)  # so that even the only token of a data set costs something
    costs = {token: whole - math.log(count) for token, count in counts.items()}
    scores = array("d")
    for number, (ids, trained) in enumerate(rows()):
        score = math.fsum(map(costs.__getitem__, compress(ids, trained)))
        if number % width:
            scores[-1] += score
        else:
            scores.append(score)
    return array("q", sorted(range(len(scores)), key=scores.__getitem__))
