"""Writing in which no spaces part words, so that each sign counts as one: Thai to Burmese, Khmer, kana, Chinese."""

from __future__ import annotations

# For a character class of a regular expression.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
)
