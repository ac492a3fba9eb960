"""The channel on real pipes: what is dropped, what never is, and that nobody waits for a reader."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

import pytest

from backpropagate_protocol.framing import decoder_for_parent, encode
from backpropagate_protocol.messages import Notice, Ping, Progress, Save, Say, Stop, ToParent
from backpropagate_runner.channel import Channel


@dataclass
class Ends:
    """A channel, and the parent's two ends of it."""

    channel: Channel
    to_child: int
    from_child: int
    heard: SimpleQueue[Stop | Save]
    lost: SimpleQueue[str]
    confused: SimpleQueue[str]
    closed: set[int] = field(default_factory=set)

    def close(self, descriptor: int) -> None:
        if descriptor not in self.closed:
            self.closed.add(descriptor)
            os.close(descriptor)

    def read_until(self, last: ToParent) -> list[ToParent]:
        decoder, messages = decoder_for_parent(), list[ToParent]()
        while last not in messages:
            messages += decoder.feed(os.read(self.from_child, 1 << 16))
        return messages


@pytest.fixture
def ends() -> Iterator[Ends]:
    child_in, to_child = os.pipe()
    from_child, child_out = os.pipe()
    heard: SimpleQueue[Stop | Save] = SimpleQueue()
    lost: SimpleQueue[str] = SimpleQueue()
    confused: SimpleQueue[str] = SimpleQueue()
    channel = Channel(child_in, child_out, heard.put, lost.put, confused.put)
    channel.start()
    ends = Ends(channel, to_child, from_child, heard, lost, confused)
    yield ends
    ends.close(to_child)
    ends.close(from_child)
    for thread in threading.enumerate():
        if thread.name == "protocol-in":
            thread.join(10)
    os.close(child_in)
    # The writer waits for a message that nobody sends, so its descriptor is left to the end of the process.


def _progress(step: int) -> Progress:
    return Progress(step, 10**6, step, 0, 0.5)


def test_progress_that_nobody_reads_does_not_hold_up_whoever_reports_it(ends: Ends) -> None:
    """100,000 reports are far more than a pipe holds; only the newest must come through."""
    for step in range(100_000):
        ends.channel.progress(_progress(step))
    steps = [m.step for m in ends.read_until(_progress(99_999)) if isinstance(m, Progress)]
    assert steps == sorted(steps)
    assert len(steps) < 100_000


def test_no_event_is_ever_dropped_or_overtaken(ends: Ends) -> None:
    for number in range(5_000):
        ends.channel.progress(_progress(number))
        ends.channel.send(Notice("info", str(number)))
    messages = ends.read_until(Notice("info", "4999"))
    assert [m.text for m in messages if isinstance(m, Notice)] == [str(n) for n in range(5_000)]
    # Each report was followed by an event, so none could be replaced by a newer one.
    assert [m.step for m in messages if isinstance(m, Progress)] == list(range(5_000))


def test_flush_tells_whether_all_was_written(ends: Ends) -> None:
    ends.channel.send(Notice("info", "short"))
    assert ends.channel.flush(10)
    ends.channel.send(Notice("info", "x" * 1_000_000))  # more than the pipe holds, and nobody reads
    assert not ends.channel.flush(0.05)


def test_settling_waits_for_a_stalled_reader_only_once(ends: Ends) -> None:
    ends.channel.send(Notice("info", "x" * 1_000_000))
    ends.channel.settle(0.05)
    ends.channel.settle(3600)  # would be noticed
    ends.channel.send(Notice("info", "last"))
    ends.read_until(Notice("info", "last"))
    ends.channel.settle(3600)


def test_a_reader_that_went_away_is_noticed_and_flush_does_not_wait_for_it(ends: Ends) -> None:
    ends.close(ends.from_child)
    ends.channel.send(Notice("info", "anyone?"))
    assert "broke" in ends.lost.get(timeout=60)
    assert not ends.channel.flush(60)


def test_stop_and_save_are_handed_on_and_a_ping_is_not(ends: Ends) -> None:
    os.write(ends.to_child, encode(Ping()) + encode(Save()) + encode(Stop("ctrl-c")))
    assert ends.heard.get(timeout=60) == Save()
    assert ends.heard.get(timeout=60) == Stop("ctrl-c")


def test_what_is_said_is_kept_in_order_until_somebody_listens(ends: Ends) -> None:
    first, second = Say((("user", "a"),)), Say((("user", "a"), ("assistant", "b"), ("user", "c")))
    os.write(ends.to_child, encode(first) + encode(Ping()) + encode(second))
    ends.close(ends.to_child)
    assert [ends.channel.say(), ends.channel.say(), ends.channel.say()] == [first, second, None]


def test_the_end_of_the_pipe_means_that_the_parent_is_gone(ends: Ends) -> None:
    ends.close(ends.to_child)
    assert ends.lost.get(timeout=60) == "the parent closed the pipe"
    assert ends.channel.job() is None


@pytest.mark.parametrize("junk", [b"\xff" * 8, encode(Ping())[:-1] + b"\xc1", b"\x01\x00\x00\x00\x93"])
def test_bytes_that_are_no_message_are_told_apart_from_an_end(ends: Ends, junk: bytes) -> None:
    os.write(ends.to_child, junk)
    assert ends.confused.get(timeout=60)
    assert ends.lost.empty()


def test_a_frame_cut_short_is_no_clean_end(ends: Ends) -> None:
    os.write(ends.to_child, encode(Stop("never finished"))[:-2])
    ends.close(ends.to_child)
    assert "inside a frame" in ends.confused.get(timeout=60)
