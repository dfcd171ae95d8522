"""Frames: how the daemon, the fork server and the shims speak to each other.

A frame is a 4-byte big-endian length and one CBOR map. The first frame on a connection is the
server's hello, `{"holdfast": 2, "pid": ...}`, with the version that it speaks; the daemon accepts
its own and the one before, for shims outlive an upgrade. Then come requests `{"id", "do", ...}`,
each answered once, in any order, by `{"id", "ok": {...}}` or `{"id", "error": {"code", "text"}}`; a
map with `"event"` comes unasked. Standard library and cbor2 alone: the fork server preloads this
file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, Final

import cbor2

from ..actors import errors

PROTOCOL_VERSION: Final = 2
"""2 added `settle`."""

PROTOCOL_OLDEST: Final = PROTOCOL_VERSION - 1
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
HEADER: Final = struct.Struct(">I")

REFUSALS: Final[Mapping[str, type[errors.Refusal]]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.Refusal)
}


class FrameError(Exception):
    """The peer broke the framing; the connection is of no further use."""


def encode(message: Mapping[str, Any]) -> bytes:
    """One frame. A message that is too large is a ResourceExhausted of the sender."""
    body = cbor2.dumps(message)
    if len(body) > FRAME_BYTES_MAX:
        raise errors.ResourceExhausted(f"frame of {len(body)} bytes, limit {FRAME_BYTES_MAX}")
    return HEADER.pack(len(body)) + body


class Decoder:
    """Turns bytes as they come into whole messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[dict[str, Any]]:
        """The messages that `data` completes; FrameError when they are not of this protocol."""
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX:
                raise FrameError(f"frame of {length} bytes, limit {FRAME_BYTES_MAX}")
            end = HEADER.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            try:
                message = cbor2.loads(body)
            except (cbor2.CBORDecodeError, ValueError) as error:
                raise FrameError(f"not CBOR: {error}") from error
            if not isinstance(message, dict):
                raise FrameError(f"a frame holds a map, not {type(message).__name__}")
            yield message


def refusal(error: Mapping[str, Any]) -> errors.Refusal:
    """The refusal that an error answer stands for; a code not known here is an Unknown."""
    kind = REFUSALS.get(str(error.get("code")), errors.Unknown)
    return kind(str(error.get("text", "")))


def refused(refusal: errors.Refusal) -> dict[str, str]:
    """The error answer for a refusal."""
    return {"code": type(refusal).__name__, "text": str(refusal)}


def told(record: Any) -> dict[str, Any]:
    """The fields of a flat dataclass with slots; asdict copies deeply, at many times the cost."""
    return {name: getattr(record, name) for name in record.__slots__}
