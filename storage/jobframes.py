"""Frames between the daemon and its worker processes: a length, big-endian, then a CBOR map."""

import struct
from collections.abc import Mapping
from typing import Any

import cbor2

from ..actors.errors import InvalidArgument

FRAME_BYTES_MAX = 16 << 20
_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size


def encode_frame(value: Mapping[str, Any]) -> bytes:
    """A frame with its length in front."""
    raw = cbor2.dumps(value)
    return _LENGTH.pack(len(raw)) + raw


def decode_length(raw: bytes) -> int:
    """How many bytes follow those of a length; refused when they are too many."""
    length: int = _LENGTH.unpack(raw)[0]
    if length > FRAME_BYTES_MAX:
        raise InvalidArgument(f"a frame of {length} bytes")
    return length
