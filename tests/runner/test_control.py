"""Wishes and states: who may ask for what, and when it is answered at once."""

from __future__ import annotations

from backpropagate_protocol.messages import Save, Stop
from backpropagate_runner.control import Control


def _never() -> None:
    raise AssertionError("a training run is not left early")


def _training() -> Control:
    control = Control(_never)
    control.begin_training()
    return control


def test_a_save_is_wanted_once() -> None:
    control = _training()
    control.ask(Save())
    assert control.take_save()
    assert not control.take_save()


def test_a_later_stop_replaces_an_earlier_one() -> None:
    control = _training()
    control.ask(Stop("heat"))
    control.ask(Stop("a second ctrl-c", save=False))
    assert control.stop == Stop("a second ctrl-c", save=False)


def test_a_signal_after_a_stop_without_a_save_does_not_begin_one() -> None:
    """The supervisor's ladder sends the message first and the signal later."""
    control = _training()
    control.ask(Stop("heat", save=False))
    control.ask_if_not_asked(Stop("sigterm"))
    assert control.stop == Stop("heat", save=False)
