"""The plain bytes of a compressed stream, bounded, hashed on their way; and a stream compressed.

What a stream is compressed with is told by its first bytes, as containerd tells it: labels in
a manifest are often wrong. Several gzip members or zstd frames behind each other are one
stream. At no time is more held in memory than a few pieces, however far the input would
inflate. What is malformed or cut short raises `InvalidArgument`.
"""

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from isal import igzip_lib

from ..actors.errors import InvalidArgument, ResourceExhausted

PIECE_BYTES = 1 << 20
# Each end of a member copies what follows it in the piece: of small members there may be millions.
_INPUT_BYTES = 1 << 17
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
# A zstd frame may open with a skippable one, of 16 magics.
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
# The largest window zstd's own tool accepts without being told to: 128 MiB.
_WINDOW_LOG_MAX = 27


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


def _gzip() -> _Decompressor:
    made: _Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return made


def _zstd() -> _Decompressor:
    # Imported on use: most layers are gzip, and a worker should be up at once.
    from backports import zstd

    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX}
    )


def compression_of(head: bytes) -> str:
    """`gzip`, `zstd` or nothing, by a stream's first bytes."""
    if head.startswith(_GZIP_MAGIC):
        return "gzip"
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        return "zstd"
    return ""


def plain_pieces(source: BinaryIO) -> Iterator[bytes]:
    """The stream's plain bytes in pieces of at most `PIECE_BYTES`."""
    head = source.read(_INPUT_BYTES)
    compression = compression_of(head)
    if not compression:
        while head:
            yield head
            head = source.read(PIECE_BYTES)
        return
    make = _gzip if compression == "gzip" else _zstd
    data = head
    while data:
        decompressor = make()
        while not decompressor.eof:
            try:
                piece = decompressor.decompress(data, PIECE_BYTES)
            except MemoryError:
                raise
            except Exception as error:
                # Each library has an error of its own, and some are plain ValueErrors.
                if "not enough memory" in str(error):
                    raise MemoryError(str(error)) from error
                raise InvalidArgument(f"{compression} stream: {error}") from error
            data = b""
            if piece:
                yield piece
            if decompressor.needs_input and not decompressor.eof:
                data = source.read(_INPUT_BYTES)
                if not data:
                    raise InvalidArgument(f"{compression} stream: ends too early")
        data = decompressor.unused_data or source.read(_INPUT_BYTES)
        if data and compression == "gzip":
            # Tapes and some registries pad with zeros, which are no member.
            data = data.lstrip(b"\0") or _after_zeros(source)


def _after_zeros(source: BinaryIO) -> bytes:
    while data := source.read(PIECE_BYTES):
        if data := data.lstrip(b"\0"):
            return data
    return b""


class PlainStream:
    """The plain bytes by `read`, with their digest and count, read ahead in threads.

    Inflating and hashing leave the interpreter's lock, so they run beside whoever writes the
    files, and beside each other. Leave the `with` block to end the threads; `drain` first to have
    the digest of the whole.
    """

    def __init__(self, source: BinaryIO, size_bytes_max: int, *, pieces_ahead: int = 8) -> None:
        self._source = source
        self._size_bytes_max = size_bytes_max
        self._pieces: queue.Queue[bytes | BaseException] = queue.Queue(pieces_ahead)
        self._unhashed: queue.Queue[bytes] = queue.Queue(pieces_ahead)
        self._current: bytes = b""
        self._at = 0
        self._ended = False
        self._closed = threading.Event()
        self._hash = hashlib.sha256()
        self.size_bytes = 0
        self._filler = threading.Thread(target=self._fill, name="plain-stream", daemon=True)
        self._hasher = threading.Thread(target=self._digest, name="plain-digest", daemon=True)

    def __enter__(self) -> "PlainStream":
        self._filler.start()
        self._hasher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        while self._filler.is_alive():
            # The thread may wait for room; make some until it has noticed.
            try:
                self._pieces.get(timeout=0.01)
            except queue.Empty:
                continue
        self._filler.join()
        self._hasher.join()

    def _fill(self) -> None:
        try:
            for piece in plain_pieces(self._source):
                self.size_bytes += len(piece)
                if self.size_bytes > self._size_bytes_max:
                    raise ResourceExhausted(
                        f"the stream inflates to more than {self._size_bytes_max} bytes"
                    )
                self._unhashed.put(piece)
                self._pieces.put(piece)
                if self._closed.is_set():
                    return
            self._pieces.put(b"")
        except BaseException as error:
            # It is the reader's to raise.
            self._pieces.put(error)
        finally:
            self._unhashed.put(b"")

    def _digest(self) -> None:
        while piece := self._unhashed.get():
            self._hash.update(piece)

    def read(self, count: int) -> bytes:
        """Between 1 and `count` bytes; none at the end."""
        start = self._at
        if start == len(self._current):
            if self._ended:
                return b""
            piece = self._pieces.get()
            if not isinstance(piece, bytes):
                self._ended = True
                raise piece
            self._current = piece
            start = 0
            self._ended = not piece
        found = self._current[start : start + count]
        self._at = start + len(found)
        return found

    def drain(self) -> str:
        """Read to the end; the digest of every plain byte of the stream."""
        while self.read(PIECE_BYTES):
            pass
        self._hasher.join()
        return f"sha256:{self._hash.hexdigest()}"


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _compressor(compression: str) -> _Compressor:
    if compression == "zstd":
        from backports import zstd

        return zstd.ZstdCompressor()
    # isal is faster, but chooses its code, and with it the bytes, by the processor.
    return zlib.compressobj(wbits=zlib.MAX_WBITS | 16)


class PackedStream:
    """Takes plain bytes, hashes and counts them, and hands them on compressed.

    The same bytes, in whatever pieces, give the same stream.
    """

    def __init__(self, write: Callable[[bytes], object], compression: str) -> None:
        self._sink = write
        self._compressor = _compressor(compression) if compression else None
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> None:
        """Take these bytes in."""
        self._hash.update(data)
        self.size_bytes += len(data)
        self._hand_on(data if self._compressor is None else self._compressor.compress(data))

    def finish(self) -> str:
        """Write what is held back; the digest of all plain bytes."""
        if self._compressor is not None:
            self._hand_on(self._compressor.flush())
        return f"sha256:{self._hash.hexdigest()}"

    def _hand_on(self, data: bytes) -> None:
        if data:
            self._sink(data)
