"""GOAWAY, kept from h2 and spoken without it.

h2 takes a GOAWAY, received or sent, as the end of the connection and then refuses every further
frame. gRPC means the opposite: calls that run are to finish. So GOAWAY is cut out of the incoming
bytes before h2 sees them, and the outgoing one is serialized here.

Whoever looks at frame headers can also refuse a frame that is too large by its header; h2 gathers
all of it first, up to 16 MiB.
"""

import struct
from dataclasses import dataclass

from hyperframe.frame import GoAwayFrame

PREFACE_BYTES = 24  # "PRI * HTTP/2.0..." precedes a client's first frame
ALL_STREAMS = 2**31 - 1

_HEADER_BYTES = 9
_GOAWAY_TYPE = 7
_GOAWAY_BYTES_MAX = 16 << 10
_BODY = struct.Struct(">II")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The peer takes no further streams; those above `last_stream_id` it has not processed."""

    last_stream_id: int
    error_code: int


class FrameTooLarge(Exception):
    """The peer announced a frame larger than the settings allow."""


def serialize(last_stream_id: int, error_code: int = 0) -> bytes:
    """The bytes of one GOAWAY frame."""
    frame = GoAwayFrame(0, last_stream_id=last_stream_id, error_code=error_code)
    return frame.serialize()


class GoAwayFilter:
    """Splits incoming bytes into what h2 may see and the GOAWAYs between.

    `split` returns both in order. A frame header, or a GOAWAY, that is not whole is held until
    its rest arrives; all other bytes pass at once, uncopied when no GOAWAY is among them.
    """

    def __init__(self, *, skip_bytes: int, frame_bytes_max: int = 2**24) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._skip_bytes = skip_bytes  # of the current frame (or the preface): pass, unread
        self._held = b""

    def split(self, data: bytes) -> list[bytes | GoAway]:
        """The next bytes from the socket, in pieces. Raises FrameTooLarge."""
        if self._held:
            data = self._held + data
            self._held = b""
        pieces: list[bytes | GoAway] = []
        start = 0  # of bytes not yet passed on
        at = self._skip_bytes  # the next frame header
        while at + _HEADER_BYTES <= len(data):
            size = int.from_bytes(data[at : at + 3], "big")
            if size > self._frame_bytes_max:
                raise FrameTooLarge(f"{size} bytes, {self._frame_bytes_max} are allowed")
            end = at + _HEADER_BYTES + size
            if data[at + 3] != _GOAWAY_TYPE or not _BODY.size <= size <= _GOAWAY_BYTES_MAX:
                at = end
                continue
            if end > len(data):
                break
            if at > start:
                pieces.append(data[start:at])
            last, code = _BODY.unpack_from(data, at + _HEADER_BYTES)
            pieces.append(GoAway(last_stream_id=last & ALL_STREAMS, error_code=code))
            start = at = end
        if at < len(data):
            self._held = data[at:]
        self._skip_bytes = max(at - len(data), 0)
        if start < min(at, len(data)):
            pieces.append(data[start:at])
        return pieces
