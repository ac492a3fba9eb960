"""A hub that does not answer is told from one that says no, whatever libraries wrap around it."""

from __future__ import annotations

import pytest

from backpropagate_protocol.hub import is_hub_trouble


class TransportError(Exception):
    """As the HTTP libraries name it."""


class ConnectTimeout(TransportError):
    pass


class LocalEntryNotFoundError(FileNotFoundError):
    """As the hub's client names it."""


class OfflineModeIsEnabled(ConnectionError):
    """As the hub's client names it."""


class _Answer:
    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


class HubError(OSError):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = _Answer(status)


def _wrapped(cause: BaseException) -> OSError:
    error = OSError("we could not load this file")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "cause",
    [ConnectTimeout(), LocalEntryNotFoundError(), ConnectionResetError(), TimeoutError(), HubError(503), HubError(429)],
)
def test_what_passes_by_itself_is_the_hubs_trouble(cause: BaseException) -> None:
    assert is_hub_trouble(cause)
    assert is_hub_trouble(_wrapped(cause))


@pytest.mark.parametrize("cause", [FileNotFoundError(), ValueError(), HubError(401), HubError(404)])
def test_what_would_fail_again_is_not(cause: BaseException) -> None:
    assert not is_hub_trouble(cause)
    assert not is_hub_trouble(_wrapped(cause))


def test_who_turned_the_network_off_is_not_told_to_wait() -> None:
    error = LocalEntryNotFoundError()
    error.__cause__ = OfflineModeIsEnabled()
    assert not is_hub_trouble(error)


def test_an_answer_says_more_than_the_connection_that_brought_it() -> None:
    error = HubError(404)
    error.__context__ = ConnectionError()
    assert not is_hub_trouble(error)


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert not is_hub_trouble(first)
