"""What every export is asked, before and after: short prompts, each of which has broken a tokenizer or a template somewhere."""

from __future__ import annotations

PROMPTS = (
    "What is the capital of France?",
    "What is 17 + 2048 - 3.14159?  And 1234567890?",
    "def f(x):\n\treturn  x  if x else\tNone   # odd   spaces",
    "Grüße aus Zürich, naïve café: «où est-ce?»",
    "日本の首都はどこですか。 请用中文回答。 한국어도 괜찮아요.",
    "Is 👩‍🔬🚀 one word or two? 🇪🇺",
    "First line.\n\n  Second line, indented.\nThird line: what came first?",
    "I'LL say it's \"don't\", they've said; you'd've known!",
)
