"""Tells a hub that does not answer from a hub that says no: the first passes by itself.

Errors are known by the names of their classes, so that no framework is imported, and because the hub's client has changed
the HTTP library under it before.
"""

from __future__ import annotations

_NOBODY_ANSWERS = frozenset(
    {
        "TransportError",  # of the HTTP libraries: no connection, or none that lasted
        "LocalEntryNotFoundError",  # of the hub's client: not in the cache, and nobody answers
        "ConnectionError",
        "TimeoutError",
    }
)
_TURNED_OFF = "OfflineModeIsEnabled"
_TOO_MANY = 429
_SERVERS_OWN = 500


def is_hub_trouble(error: BaseException) -> bool:
    """Whether there was no connection, no answer in time, or one of the kind "not now" (429 and 5xx).

    Libraries wrap what happened, so the whole chain of causes is looked at. Who has turned the network off meant it.
    """
    seen: dict[int, BaseException] = {}
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen[id(link)] = link
        link = link.__cause__ or link.__context__
    names = {cls.__name__ for link in seen.values() for cls in type(link).__mro__}
    if _TURNED_OFF in names:
        return False
    statuses = (getattr(getattr(link, "response", None), "status_code", None) for link in seen.values())
    told = [status for status in statuses if isinstance(status, int)]
    if told:
        return any(status == _TOO_MANY or status >= _SERVERS_OWN for status in told)
    return bool(names & _NOBODY_ANSWERS)
