"""Blocks of headers, to and from bytes (RFC 7541), and what HTTP/2 asks of them (RFC 9113, 8).

We encode every field as a literal that the peer is not to remember: the same headers are the same
bytes for ever, on any connection. We decode with the hpack package, and keep what a block meant for
as long as the peer's table stays as it is: a client's calls differ in little else than their
messages.
"""

from collections.abc import Iterable
from functools import cached_property, lru_cache

from hpack import Decoder
from hpack.exceptions import HPACKError

from .codec import Header, decode_metadata

LIST_BYTES_MAX = 64 << 10  # of one block when decoded, as section 4.1 of RFC 7541 counts

# The peer's table for us is empty, now and after any change of its size (RFC 7541, section 4.2).
EMPTY_TABLE = b"\x20"
_STATUS_OK = (b":status", b"200")
_STATUS_OK_INDEXED = b"\x88"
_LITERAL = b"\x00"

_KEPT_MAX = 128
_KEPT_BYTES_MAX = 4096

_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_OF_REQUESTS = frozenset((b":method", b":scheme", b":path", b":authority", b":protocol"))
_OF_ANSWERS = frozenset((b":status",))
_NEEDED = {True: (b":method", b":scheme", b":path"), False: (b":status",)}
_FORBIDDEN = (b"\0", b"\r", b"\n")


class Malformed(Exception):
    """Headers that HTTP/2 does not allow: their stream ends."""


class Headers:
    """One block's fields. All blocks of the same bytes share them: nobody changes them."""

    def __init__(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self.fields: tuple[Header, ...] = tuple((bytes(n), bytes(v)) for n, v in fields)
        self.by_name: dict[bytes, bytes] = dict(reversed(self.fields))  # the first of a name counts

    @cached_property
    def metadata(self) -> dict[str, str | bytes]:
        """The caller's own among them. Raises CallFailed for a binary one that is none."""
        return decode_metadata(self.fields)

    @cached_property
    def is_interim(self) -> bool:
        """Whether they only announce the answer that is to come."""
        return self.by_name.get(b":status", b"")[:1] == b"1"

    @cached_property
    def fault(self) -> str:
        """What every block of headers must not be; empty when all is well."""
        is_head_over = False
        pseudo: set[bytes] = set()
        for name, value in self.fields:
            if name[:1] != b":":
                is_head_over = True
            elif is_head_over or name in pseudo:
                return f"{name!r} comes twice or too late"
            else:
                pseudo.add(name)
            if fault := _fault_of(name, value):
                return fault
        return ""

    def check(self, *, of_request: bool, is_trailer: bool) -> None:
        """Raise Malformed unless they may stand where they came."""
        if self.fault:
            raise Malformed(self.fault)
        allowed = _OF_REQUESTS if of_request else _OF_ANSWERS
        needed = () if is_trailer else _NEEDED[of_request]
        for name in needed:
            if name not in self.by_name:
                raise Malformed(f"{name!r} is missing")
        for name in self.by_name:
            if name[:1] == b":" and (is_trailer or name not in allowed):
                raise Malformed(f"{name!r} is not for here")


@lru_cache(1024)
def _fault_of(name: bytes, value: bytes) -> str:
    """What one field must not be."""
    if not name or name.lower() != name or name in _HOP_BY_HOP:
        return f"{name!r} is no name of a header here"
    if name == b"te" and value != b"trailers":
        return f"te: {value!r}"
    if any(byte in value or byte in name for byte in _FORBIDDEN):
        return f"{name!r} or its value has a line's end in it"
    return ""


class BlockDecoder:
    """Decodes one peer's blocks, in the order in which they came."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=LIST_BYTES_MAX)
        self._kept: dict[bytes, Headers] = {}

    def decode(self, block: bytes) -> Headers:
        """What a block means. Raises HPACKError; the connection is lost then."""
        found = self._kept.get(block)
        if found is not None:
            return found
        sizes, head = self._table()
        headers = Headers(self._decoder.decode(block, raw=True))
        sizes_now, head_now = self._table()
        if sizes_now != sizes or head_now is not head or len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        elif len(block) <= _KEPT_BYTES_MAX:
            self._kept[block] = headers
        return headers

    def _table(self) -> tuple[tuple[int, int], object]:
        """Two things of which one differs after every change of the table: it grows at its head
        alone. While the entry at its head is held, no other one is this very object."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return (table.maxsize, len(entries)), entries[0] if entries else None


def encode(fields: Iterable[Header]) -> bytes:
    """The block of these fields."""
    block = bytearray()
    for field in fields:
        if field == _STATUS_OK:
            block += _STATUS_OK_INDEXED
            continue
        name, value = field
        block += _LITERAL
        block += _length(len(name))
        block += name
        block += _length(len(value))
        block += value
    return bytes(block)


@lru_cache(256)
def _length(size: int) -> bytes:
    """A length in HPACK's integers of seven bits (RFC 7541, section 5.1)."""
    if size < 0x7F:
        return bytes((size,))
    out, left = bytearray((0x7F,)), size - 0x7F
    while left >= 0x80:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)
    return bytes(out)


__all__ = ["EMPTY_TABLE", "BlockDecoder", "HPACKError", "Headers", "Malformed", "encode"]
