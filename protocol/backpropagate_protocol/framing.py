"""Bytes to messages and back: 4-byte little-endian length, then a msgpack body. No I/O.

Whatever the bytes are, `Decoder` either yields messages or raises ProtocolError; it never grows without bound and never
waits for more than one frame of at most MAX_FRAME bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from backpropagate_protocol.messages import ToChild, ToParent

MAX_FRAME = 16 * 1024 * 1024
_HEADER = 4

T = TypeVar("T")


class ProtocolError(Exception):
    """The other side sent something that is not this protocol: an oversized or truncated frame, an unknown message."""


_encoder = msgspec.msgpack.Encoder()


def encode(message: ToChild | ToParent) -> bytes:
    """One whole frame."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return len(body).to_bytes(_HEADER, "little") + body


class Decoder(Generic[T]):
    """Feed it bytes as they come, in pieces of any size; it yields whole messages."""

    def __init__(self, union: type[T]) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _HEADER:
                length = int.from_bytes(buffer[start : start + _HEADER], "little")
                if length > MAX_FRAME:
                    raise ProtocolError(f"a frame claims {length} bytes; the limit is {MAX_FRAME}")
                end = start + _HEADER + length
                if len(buffer) < end:
                    break
                body = bytes(buffer[start + _HEADER : end])
                start = end
                try:
                    message = self._decode(body)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise ProtocolError(f"a frame of {length} bytes is no message of ours: {error}") from error
                yield message
        finally:
            del buffer[:start]

    def close(self) -> None:
        """Call at end of file: raises if it came in the middle of a frame."""
        if self._buffer:
            raise ProtocolError(f"the stream ended inside a frame ({len(self._buffer)} bytes of it came)")


def decoder_for_parent() -> Decoder[ToParent]:
    return Decoder(ToParent)  # type: ignore[arg-type]  # a union is a type form, which `type[T]` cannot say


def decoder_for_child() -> Decoder[ToChild]:
    return Decoder(ToChild)  # type: ignore[arg-type]  # as above
