"""What Python programs may ask for by a name that means nothing in this release: refused by that name, with what to do."""

from __future__ import annotations

from collections.abc import Mapping

from backpropagate_protocol.errors import InvalidSettingError, UserInputError

# Arguments of `Trainer` and `Trainer.train`: asking for one is an error, refusing it (False, None) is not.
_ARGUMENTS = (
    "unsloth_fallback", "response_markers", "extra_callbacks",
)  # fmt: skip
_OTHER_WORDS = {
    "use_unsloth": "Say unsloth=True or unsloth=False.",
    "train_on_responses": "Say train_on='assistant' (which is the default) or train_on='all'.",
    "dataset": "Say data=….",
    "resume_from": "Say resume=RUN.",
    "resume_from_checkpoint": "Say resume=RUN.",
}
_METHODS = {
    "estimate_vram": "Say Trainer(…).estimate().",
    "load_model": "The model lives in the training process only; `backprop generate RUN` asks it something.",
    "model": "The model lives in the training process only; `backprop generate RUN` asks it something.",
    "tokenizer": "The tokenizer lives in the training process only.",
}


class NotInThisRelease(UserInputError, AttributeError):
    """A method that a later release brings. An AttributeError too, so that `hasattr` tells the truth."""


def method_error(name: str) -> AttributeError:
    """What asking a Trainer for an attribute that it does not have comes to."""
    if name in _METHODS:
        return NotInThisRelease(f"Trainer.{name} is not part of this release", suggestion=_METHODS[name])
    return AttributeError(f"'Trainer' object has no attribute {name!r}")


def without_later(given: Mapping[str, object]) -> dict[str, object]:
    """The arguments that this release knows, or that are unknown altogether. Raises for the others."""
    kept = dict(given)
    for name in _ARGUMENTS:
        if kept.pop(name, None):
            raise InvalidSettingError(f"{name} is not part of this release yet", suggestion="Leave it out.")
    for name, instead in _OTHER_WORDS.items():
        if name in kept:
            raise UserInputError(f"there is no argument {name!r} here", suggestion=instead)
    return kept
