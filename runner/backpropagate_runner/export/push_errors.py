"""What the hub's client raises while pushing, in our codes and without the token."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from backpropagate_protocol import hub_names
from backpropagate_protocol.errors import BackpropagateError, error_for
from backpropagate_protocol.hub import is_hub_trouble
from backpropagate_protocol.redact import redact

_MASK = "[redacted]"


def check_repo(repo: str) -> None:
    """Raises HUB_PUSH_INVALID_REPO unless `repo` is an owner/name that the hub can have."""
    wrong = hub_names.check_repo(repo)
    if wrong is not None:
        raise error_for("HUB_PUSH_INVALID_REPO", wrong)


def without(token: str | None, text: str) -> str:
    """The text without the token, whatever the token looks like."""
    return redact(text.replace(token, _MASK) if token else text)


def translated(error: BaseException, repo: str, token: str | None) -> BackpropagateError:
    """The coded error that stands for what the hub's client raised."""
    said = without(token, _said(error))
    status = next((found for link in _chain(error) if (found := _status(link))), None)
    names = {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}
    if "OfflineModeIsEnabled" in names:
        return error_for(
            "HUB_PUSH_NETWORK",
            f"{repo} was not pushed: the hub's client was told to stay offline",
            suggestion="Unset HF_HUB_OFFLINE, then push again.",
        )
    if "HFValidationError" in names:
        return error_for("HUB_PUSH_INVALID_REPO", f"{repo!r} cannot be a repository of the hub: {said}")
    if "LocalTokenNotFoundError" in names or status == HTTPStatus.UNAUTHORIZED:
        return error_for("INPUT_AUTH_REQUIRED", f"the hub does not accept the token for {repo}: {said}")
    if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        return error_for("HUB_PUSH_NOT_FOUND", f"the token may not write to {repo}, or there is no such owner: {said}")
    if is_hub_trouble(error):
        return error_for("HUB_PUSH_NETWORK", f"the hub did not answer while {repo} was pushed: {said}")
    return error_for("HUB_PUSH_FAILED", f"the hub did not take {repo}: {said}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _status(error: BaseException) -> int | None:
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _said(error: BaseException) -> str:
    """The hub's own words where it gave some, else the innermost error's, after what the client was doing; one line."""
    links = list(_chain(error))
    words = next((text for link in links if (text := getattr(link, "server_message", None))), None)
    words = str(words or str(links[-1]) or type(links[-1]).__name__)
    if _status(error) is None and links[-1] is not error:
        words = f"{(str(error).splitlines() or [''])[0]} {words}"
    return " ".join(words.split())[:500]
