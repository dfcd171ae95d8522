"""The fields of a tar header: numbers, texts and pax records, each a stranger's."""

import zlib

from ..actors.errors import InvalidArgument


def parse_number(raw: bytes, what: str) -> int:
    """A header's number: octal digits, or base 256 when the first bit is set."""
    digits = raw[:-1]
    if raw[-1:] in b"\0 " and digits.isdigit():
        # As nearly all are written.
        try:
            return int(digits, 8)
        except ValueError:
            raise InvalidArgument(f"tar header: {what} is no number") from None
    if raw and raw[0] & 0x80:
        value = int.from_bytes(raw, "big")
        bits = len(raw) * 8
        value -= 1 << (bits - 1)
        # Two's complement in the bits below the marker.
        if value >= 1 << (bits - 2):
            value -= 1 << (bits - 1)
        return value
    digits = raw.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    # int() alone would take signs, underscores and whitespace.
    if digits.strip(b"01234567"):
        raise InvalidArgument(f"tar header: {what} is no number")
    return int(digits, 8)


def parse_pax(raw: bytes) -> dict[bytes, bytes]:
    """The records of a pax header: `length key=value\\n`, the later of two alike wins."""
    records: dict[bytes, bytes] = {}
    sparse_map: list[bytes] = []
    start = 0
    while start < len(raw):
        space = raw.find(b" ", start, start + 20)
        digits = raw[start:space] if space > 0 else b""
        if not digits.isdigit():
            # Some writers pad with NUL bytes.
            if not raw[start:].strip(b"\0"):
                break
            raise InvalidArgument("pax header: a record has no length")
        end = start + int(digits)
        if end > len(raw) or end <= space + 1 or raw[end - 1] != 0x0A:
            raise InvalidArgument("pax header: a record's length is wrong")
        key, equals, value = raw[space + 1 : end - 1].partition(b"=")
        if not equals or not key:
            raise InvalidArgument("pax header: a record has no key")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            # Format 0.0 repeats these keys, one pair for each piece.
            sparse_map.append(value)
        else:
            records[key] = value
        start = end
    if sparse_map:
        records[b"GNU.sparse.map"] = b",".join(sparse_map)
    return records


def parse_decimal(raw: bytes, what: str) -> int:
    """A pax number: decimal digits."""
    if not raw.isdigit() or len(raw) > 20:
        raise InvalidArgument(f"pax header: {what} is no number")
    return int(raw)


def parse_time_ns(raw: bytes) -> int:
    """A pax time, decimal seconds with a fraction, in nanoseconds."""
    negative = raw.startswith(b"-")
    whole, _, fraction = raw.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 12 or (fraction and not fraction.isdigit()):
        raise InvalidArgument("pax header: a time is no number")
    value = int(whole) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0"))
    return -value if negative else value


def has_checksum(block: bytes) -> bool:
    """Whether a header block is what its own checksum says."""
    stored = block[148:156].split(b"\0", 1)[0].strip(b" ")
    if not stored or stored.strip(b"01234567"):
        return False
    # Adler's first sum is that of the bytes and one; 512 of seven bits do not overflow it.
    whole = (zlib.adler32(block) & 0xFFFF) - 1 if block.isascii() else sum(block)
    unsigned = whole - sum(block[148:156]) + 8 * 32
    if int(stored, 8) == unsigned:
        return True
    # Writers of old summed signed bytes.
    high = sum(1 for byte in block[:148] + block[156:] if byte >= 128)
    return int(stored, 8) == unsigned - 256 * high


def parse_text(raw: bytes) -> bytes:
    """A text field: what stands before its first NUL byte."""
    return raw.split(b"\0", 1)[0]
