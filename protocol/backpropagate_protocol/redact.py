"""Takes secrets out of any text before it leaves a process: logs, events, messages, history.

Patterns: bearer tokens and every other `Authorization:`, `sk-…` keys of every vendor, `hf_…`, GitHub and GitLab tokens,
AWS key ids, JWTs, private keys in PEM, credentials in URLs, and `password= / token= / api_key=` pairs, quoted or not. Redaction may hide
too much; it must never hide too little.

Every text passes here, so this is also where half a surrogate pair, which no encoding takes, becomes its escape.
"""

from __future__ import annotations

import re

_MASK = "[redacted]"
_PASSES = 8  # no text of ours needs more than three

_WHOLE = re.compile(
    r"""
    \bsk-[A-Za-z0-9_-]{8,}                              # OpenAI, Anthropic, and those who copied the shape
  | \bhf_[A-Za-z0-9]{8,}                                # Hugging Face
  | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,} # GitHub
  | \bglpat-[A-Za-z0-9_-]{16,}                          # GitLab
  | \b(?:AKIA|ASIA)[A-Z0-9]{16,}                        # AWS
  | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY[\s\S]*?(?:-----END\ [A-Z\ ]*PRIVATE\ KEY[A-Z\ ]*-----|\Z)  # PEM, cut short too
  | \beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}                # JWT
    """,
    re.VERBOSE,
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}")
_AUTHORIZATION = re.compile(r"""(?i)\b(authorization["']?\s*[:=]\s*["']?[a-z][\w-]*\s+)(?!\[redacted\])[^\s"',;]{4,}""")
_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)[^\s/:@]+:[^\s/@]+@")
_KEY = r"""\b(?:\w*[_-])?(?:password|passwd|pwd|secret|token|api[_-]?key|access[_-]?key)\\*["']?\s*[=:]\s*"""
_PAIR = re.compile(rf"""(?i)({_KEY}["']?)(?!\[redacted\])[^\s"',;&)}}\]]{{4,}}""")
# A value in quotes is hidden up to the closing one, spaces and all; to the end of the line if it is never closed. The second
# kind is a pair within a string: \"password\": \"…\".
_QUOTED = re.compile(
    rf"""(?i)({_KEY})(?:
    (["'])   (?!\[redacted\](?:\2|\n|\Z)) (?:\\[^\n]|(?!\2)[^\\\n])+
  | (\\+["'])(?!\[redacted\](?:\3|\n|\Z)) (?:(?!\3)[^\n])+
    )""",
    re.VERBOSE,
)


def redact(text: str) -> str:
    """The same text with every secret replaced by `[redacted]`; it can be encoded, whatever it was. Idempotent."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    # What is taken out may lay bare the edge of the secret beside it, so: again until nothing more is found.
    for _ in range(_PASSES):
        cleaner = _once(text)
        if cleaner == text:
            break
        text = cleaner
    return text


def _once(text: str) -> str:
    text = _WHOLE.sub(_MASK, text)
    text = _BEARER.sub(rf"\g<1>{_MASK}", text)
    text = _AUTHORIZATION.sub(rf"\g<1>{_MASK}", text)
    text = _URL.sub(rf"\g<1>{_MASK}@", text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{found[2] or found[3]}{_MASK}", text)
    return _PAIR.sub(rf"\g<1>{_MASK}", text)
