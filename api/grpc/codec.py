"""Bytes and headers of gRPC: plain functions that touch no socket.

A message travels as a five-byte prefix (compressed flag, length) and its bytes; a status travels
in trailers; times and binary values have text forms of their own.
"""

import base64
import binascii
import math
import re
import struct
from collections.abc import Iterable, Mapping
from urllib.parse import quote, unquote_to_bytes

from ...actors.errors import ResourceExhausted, Unimplemented
from ..proto.rpc_status_pb2 import Status as StatusMessage
from ..status import Code, Status, code_from_number, internal

Header = tuple[bytes, bytes]
Metadata = Mapping[str, str | bytes]

PREFIX = struct.Struct(">BI")

_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_DIGITS_MAX = 8
# grpc-message is percent-encoded UTF-8; these bytes need no encoding.
_MESSAGE_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_OUTER_SPACE = re.compile(r"\A | \Z")
# Headers that are gRPC's own and no metadata of the caller's.
_RESERVED = frozenset({b"te", b"content-type", b"user-agent"})


class MessageBuffer:
    """Cuts a stream of bytes into messages.

    `feed` returns the messages that are whole; `held_bytes` is what waits for its rest. A length
    above the bound is refused when its prefix is read, so a lie of 4 GiB costs five bytes.
    """

    __slots__ = ("_bytes_max", "_held", "_length", "_parts")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._length = -1  # of the message that has begun; its prefix is not whole while negative
        self._parts: list[bytes] = []  # of the message, or of the prefix
        self._held = 0

    @property
    def held_bytes(self) -> int:
        """The size of the message that is not whole yet, as far as it is here."""
        return self._held + (PREFIX.size if self._length >= 0 else 0)

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes as they came; raise ResourceExhausted or Unimplemented for what we refuse."""
        messages: list[bytes] = []
        at = 0
        while True:
            if self._length < 0:
                if self._held:
                    data, at = self._taken(data[at:]), 0
                if len(data) - at < PREFIX.size:
                    break
                self._length = self._check(*PREFIX.unpack_from(data, at))
                at += PREFIX.size
            end = at + self._length - self._held
            if len(data) < end:
                break
            messages.append(self._taken(data[at:end]))
            self._length = -1
            at = end
        if at < len(data):
            # A message of megabytes is joined once, when it is whole.
            self._parts.append(data[at:])
            self._held += len(data) - at
        return messages

    def _taken(self, last: bytes) -> bytes:
        """What is held and what came last, as one; nothing is held afterwards."""
        if not self._held:
            return last
        whole = b"".join((*self._parts, last))
        self._parts.clear()
        self._held = 0
        return whole

    def _check(self, compressed: int, size: int) -> int:
        if size > self._bytes_max:
            raise ResourceExhausted(
                f"grpc: received message larger than max ({size} vs. {self._bytes_max})"
            )
        if compressed:
            raise Unimplemented("grpc: compressed messages are not supported")
        return size


def parse_timeout(value: bytes) -> float:
    """Seconds from a grpc-timeout header: one to eight digits and a unit."""
    digits, unit = value[:-1], value[-1:]
    if not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS_MAX or unit not in _UNITS_S:
        raise internal(f"malformed grpc-timeout: {value!r}")
    return int(digits) * _UNITS_S[unit]


def format_timeout(timeout_s: float) -> bytes:
    """The grpc-timeout header of so many seconds, in the finest unit that fits, rounded up."""
    for unit in (b"n", b"u", b"m", b"S", b"M", b"H"):
        count = math.ceil(max(timeout_s, 0.0) / _UNITS_S[unit])
        if count < 10**_TIMEOUT_DIGITS_MAX:
            return b"%d%s" % (count, unit)
    return b"99999999H"


def encode_binary(value: bytes) -> bytes:
    """Base64 without padding, as every -bin header has it."""
    return base64.b64encode(value).rstrip(b"=")


def decode_binary(value: bytes) -> bytes:
    """The bytes of a -bin header, padded or not."""
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error as error:
        raise internal(f"malformed binary header: {value!r}") from error


def status_trailers(status: Status) -> list[Header]:
    """The trailers that end a call with this status."""
    trailers = [(b"grpc-status", b"%d" % status.code)]
    if status.message:
        text = quote(status.message, safe=_MESSAGE_SAFE, errors="replace")
        # HTTP/2 takes no value that begins or ends with a space: peers end the connection over it.
        text = _OUTER_SPACE.sub("%20", text)
        trailers.append((b"grpc-message", text.encode()))
    if status.details:
        message = StatusMessage(
            code=status.code, message=status.message, details=list(status.details)
        )
        trailers.append((b"grpc-status-details-bin", encode_binary(message.SerializeToString())))
    return trailers


def parse_status(headers: Mapping[bytes, bytes]) -> Status | None:
    """The status in these headers or trailers; None when they hold none."""
    number = headers.get(b"grpc-status")
    if number is None:
        return None
    code = code_from_number(int(number)) if number.isdigit() else Code.UNKNOWN
    text = unquote_to_bytes(headers.get(b"grpc-message", b"")).decode(errors="replace")
    packed = headers.get(b"grpc-status-details-bin")
    if packed is None:
        return Status(code, text)
    try:
        details = tuple(StatusMessage.FromString(decode_binary(packed)).details)
    except Exception:  # a detail that does not parse must not hide the status it comes with
        details = ()
    return Status(code, text, details)


def encode_metadata(metadata: Metadata) -> list[Header]:
    """Headers of a caller's metadata. Names are lowered; bytes need a name that ends in -bin."""
    headers: list[Header] = []
    for name, value in metadata.items():
        key = name.lower()
        if key.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode()
            headers.append((key.encode(), encode_binary(raw)))
        else:
            assert isinstance(value, str), f"metadata {name!r} is binary: its name must end in -bin"
            headers.append((key.encode(), value.encode()))
    return headers


def decode_metadata(headers: Iterable[Header]) -> dict[str, str | bytes]:
    """The caller's metadata among these headers; the first of a repeated name counts."""
    metadata: dict[str, str | bytes] = {}
    for key, value in headers:
        if key[:1] == b":" or key in _RESERVED or key.startswith(b"grpc-"):
            continue
        name = key.decode("ascii", errors="replace")
        if name in metadata:
            continue
        if name.endswith("-bin"):
            metadata[name] = decode_binary(value)
        else:
            metadata[name] = value.decode(errors="replace")
    return metadata
