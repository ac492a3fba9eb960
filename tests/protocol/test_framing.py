"""Framing: any bytes become messages or a ProtocolError, in pieces of any size; golden frames can be read for ever."""

from __future__ import annotations

import itertools
import typing

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_protocol.framing import (
    MAX_FRAME,
    ProtocolError,
    decoder_for_child,
    decoder_for_parent,
    encode,
)
from backpropagate_protocol.jobs import Job
from backpropagate_protocol.messages import Done, Hello, Notice, Ping, Progress, RunJob, ToChild, ToParent
from tests.protocol.samples import TO_CHILD, TO_PARENT, WIRE


def in_pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.sampled_from(list(TO_PARENT.values())), max_size=6), st.lists(st.integers(0, 10**6), max_size=12))
def test_messages_arrive_whole_and_in_order_however_the_stream_is_cut(sent: list[ToParent], cuts: list[int]) -> None:
    decoder = decoder_for_parent()
    got = [message for piece in in_pieces(b"".join(map(encode, sent)), cuts) for message in decoder.feed(piece)]
    decoder.close()
    assert got == sent


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
def test_any_bytes_are_messages_or_a_protocol_error(stream: bytes, cuts: list[int]) -> None:
    for decoder in (decoder_for_parent(), decoder_for_child()):
        try:
            for piece in in_pieces(stream, cuts):
                for message in decoder.feed(piece):
                    assert isinstance(message, msgspec.Struct)
            decoder.close()
        except ProtocolError:
            pass


@given(st.sampled_from(list(TO_PARENT.values())), st.data())
def test_a_frame_with_any_damage_is_a_message_or_a_protocol_error(message: ToParent, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    where = data.draw(st.integers(0, len(frame) - 1))
    frame[where] ^= data.draw(st.integers(1, 255))
    decoder = decoder_for_parent()
    try:
        assert all(isinstance(m, msgspec.Struct) for m in decoder.feed(bytes(frame)))
        decoder.close()
    except ProtocolError:
        pass


def test_what_came_before_the_damage_is_still_delivered() -> None:
    decoder = decoder_for_parent()
    stream = decoder.feed(encode(Notice("info", "first")) + b"\x01\x00\x00\x00\xc1")
    assert next(stream) == Notice("info", "first")
    with pytest.raises(ProtocolError, match="no message of ours"):
        next(stream)


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    with pytest.raises(ProtocolError, match="limit"):
        list(decoder_for_parent().feed((MAX_FRAME + 1).to_bytes(4, "little")))


def test_an_oversized_message_is_refused_where_it_is_made() -> None:
    with pytest.raises(ProtocolError, match="limit"):
        encode(Notice("info", "x" * MAX_FRAME))


def test_a_stream_that_ends_inside_a_frame_is_an_error() -> None:
    decoder = decoder_for_parent()
    assert list(decoder.feed(encode(Notice("info", "cut"))[:-1])) == []
    with pytest.raises(ProtocolError, match="inside a frame"):
        decoder.close()


def test_the_two_directions_do_not_mix() -> None:
    with pytest.raises(ProtocolError):
        list(decoder_for_parent().feed(encode(Ping())))
    with pytest.raises(ProtocolError):
        list(decoder_for_child().feed(encode(Notice("info", "not for you"))))


def test_deep_nesting_is_a_protocol_error_and_no_crash() -> None:
    body = b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ProtocolError):
        list(decoder_for_parent().feed(len(body).to_bytes(4, "little") + body))


def test_a_loss_that_is_not_finite_survives_the_wire() -> None:
    (got,) = decoder_for_parent().feed(encode(Progress(1, 2, 8, 0, float("nan"))))
    assert isinstance(got, Progress)
    assert got.loss is not None
    assert got.loss != got.loss


@pytest.mark.parametrize("name", sorted(TO_CHILD))
def test_a_child_reads_the_golden_frame(name: str) -> None:
    assert list(decoder_for_child().feed((WIRE / f"{name}.bin").read_bytes())) == [TO_CHILD[name]]


@pytest.mark.parametrize("name", sorted(TO_PARENT))
def test_a_parent_reads_the_golden_frame(name: str) -> None:
    assert list(decoder_for_parent().feed((WIRE / f"{name}.bin").read_bytes())) == [TO_PARENT[name]]


def test_every_message_type_has_a_golden_frame_and_every_golden_frame_is_read() -> None:
    samples = {type(message) for message in (TO_CHILD | TO_PARENT).values()}
    assert samples == {*typing.get_args(ToChild), *typing.get_args(ToParent)}
    assert {path.stem for path in WIRE.glob("*.bin")} == {*TO_CHILD, *TO_PARENT}


def test_every_job_and_every_result_has_a_golden_frame() -> None:
    jobs = {type(message.job) for message in TO_CHILD.values() if isinstance(message, RunJob)}
    assert jobs == {*typing.get_args(Job)}
    results = {type(message.result) for message in TO_PARENT.values() if isinstance(message, Done)}
    assert results == {*typing.get_args(typing.get_type_hints(Done)["result"])}


def test_a_frame_is_its_length_in_four_little_endian_bytes_and_a_msgpack_array() -> None:
    frame = (WIRE / "hello.bin").read_bytes()
    assert int.from_bytes(frame[:4], "little") == len(frame) - 4
    body = msgspec.msgpack.decode(frame[4:])
    assert body[:2] == ["hello", 1]


def test_a_newer_sender_may_append_fields() -> None:
    body = msgspec.msgpack.encode(["stopped", 9, True, "a field of the future"])
    (got,) = decoder_for_parent().feed(len(body).to_bytes(4, "little") + body)
    assert got == TO_PARENT["stopped"]


def test_hello_comes_with_the_version_so_that_a_stranger_is_refused() -> None:
    (hello,) = decoder_for_parent().feed(encode(Hello(99, 1, "3.13", {})))
    assert isinstance(hello, Hello)
    assert hello.protocol == 99
