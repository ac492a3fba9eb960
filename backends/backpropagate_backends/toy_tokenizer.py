"""The toy's tokenizer: a token is a byte, and no model is needed."""

from __future__ import annotations

from collections.abc import Sequence

EOS = 256


class BytesTokenizer:
    """A token is a byte of UTF-8; 256 ends a text."""

    digest = "toy-bytes-1"
    max_length: int | None = None

    def chat(self, messages: Sequence[dict[str, object]], tools: object | None) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        trained: list[int] = []
        for message in messages:
            head = list(f"{message['role']}: ".encode())
            body = [*str(message.get("content") or "").encode(), EOS]
            ids += head + body
            trained += [0] * len(head) + [int(message["role"] == "assistant")] * len(body)
        return ids, trained

    def completion(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        head, body = list(prompt.encode()), [*completion.encode(), EOS]
        return head + body, [0] * len(head) + [1] * len(body)

    def text(self, text: str) -> tuple[list[int], list[int]]:
        ids = [*text.encode(), EOS]
        return ids, [1] * len(ids)

    def decode(self, ids: Sequence[int]) -> str:
        return "<end>".join(bytes(part).decode(errors="replace") for part in _parts(ids))

    def check(self) -> None: ...


def _parts(ids: Sequence[int]) -> list[list[int]]:
    """What stands between the ends of texts."""
    parts: list[list[int]] = [[]]
    for token in ids:
        if token == EOS:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
