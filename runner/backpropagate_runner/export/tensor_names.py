"""A module's name in memory to its tensor's name on disk: the two differ where a model grew a wrapper between versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

HEAD = "lm_head"

# Parts of a name that only say how deep a text model is wrapped.
_WRAPPING = frozenset({"model", "language_model", "text_model", "transformer", "base_model"})
_INPUTS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")


class NameMap:
    """Finds a tensor by the name that transformers gives it in memory."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._bare: dict[str, list[str]] = {}
        for name in self._names:
            self._bare.setdefault(_bare(name), []).append(name)

    def find(self, name: str) -> str | None:
        """None if there is none, or if more than one could be meant."""
        if name in self._names:
            return name
        candidates = self._bare.get(_bare(name), [])
        return candidates[0] if len(candidates) == 1 else None


def input_embedding(names: Iterable[str]) -> str | None:
    """The tensor that turns tokens into vectors, if exactly one looks like it."""
    found = [name for name in names if name.endswith(_INPUTS) and "vision" not in name]
    return found[0] if len(found) == 1 else None


def is_tied(config: Mapping[str, object], head: str | None) -> bool:
    """Whether input and output embedding are one tensor: there is no second one, or the configuration overrules it."""
    text = config.get("text_config")
    told = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
    return head is None or told is True


def untied(config: Mapping[str, object]) -> dict[str, object]:
    """The same configuration for a model with two tensors."""
    changed = dict(config, tie_word_embeddings=False)
    text = config.get("text_config")
    if isinstance(text, dict):
        changed["text_config"] = dict(text, tie_word_embeddings=False)
    return changed


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPING)
