"""Spans: the parts of a blob, each of which comes through a connection of its own.

    0                 offset                                                 size
    |===== ingest =====|-----head-----|------span------|------span------|
                        straight in      its part file     its part file

An ingest is appended in order. So the span at its end is written straight into it, and what comes
of the later ones waits in a part file beside the ingest, on the disk: memory is bounded, and a pull
that is killed goes on with all that had come. Part files go with their ingest's directory.

Invariant: a span's bytes before `at` are in the ingest, or in its part file.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import trio

from ..ingest import Ingest
from ..refusal import refusal_of

PIECE_BYTES = 1 << 20
PREFIX = "part-"


class Span:
    """The bytes from `begins` up to `ends`, which is not among them; `at` is the next to come."""

    def __init__(self, begins: int, ends: int, at: int, path: Path) -> None:
        self.begins = begins
        self.ends = ends
        self.at = at
        self.whole = trio.Event()
        self._path = path
        self._ingest: Ingest | None = None
        # Held while bytes move, so that what comes is neither lost nor out of order.
        self._moving = trio.Lock()

    async def put(self, data: bytes) -> None:
        """Keep the next bytes, so that they outlive this process."""
        async with self._moving:
            if self._ingest is not None:
                await self._ingest.write(data)
            else:
                await trio.to_thread.run_sync(_append, self._path, self.at - self.begins, data)
            self.at += len(data)

    async def lead_into(self, ingest: Ingest) -> None:
        """What came so far goes into the ingest, and what comes from now on straight after it.

        The ingest has all before this span, and maybe its first bytes.
        """
        async with self._moving:
            offset = (await ingest.state()).offset
            while offset < self.at:
                piece = await trio.to_thread.run_sync(_read, self._path, offset - self.begins)
                assert piece  # the part file has what comes before `at`
                offset = await ingest.write(piece[: self.at - offset])
            await trio.to_thread.run_sync(lambda: self._path.unlink(missing_ok=True))
            self._ingest = ingest


def plan(directory: Path, offset: int, size: int, range_bytes: int) -> Sequence[Span]:
    """The spans of what an ingest lacks, with what their part files have. Reads the disk; blocks.

    A blob is cut where it always is, so that part files of an earlier pull are found again; the
    first span is a short one, since it tells whether the server knows ranges at all. Part files
    that fit nowhere are removed.
    """
    cuts = [0]
    if size >= 2 * range_bytes:
        cuts += [range_bytes // 4, *range(range_bytes, size, range_bytes)]
    found = {path.name: path for path in directory.glob(f"{PREFIX}*")}
    spans: list[Span] = []
    for begins, ends in zip(cuts, [*cuts[1:], size], strict=True):
        if ends <= offset:
            continue
        path = directory / f"{PREFIX}{begins}-{ends}"
        kept = found.pop(path.name, None)
        came = 0 if kept is None else min(kept.stat().st_size, ends - begins)
        spans.append(Span(begins, ends, max(begins + came, offset, begins), path))
    for path in found.values():
        path.unlink(missing_ok=True)
    return spans


def _append(path: Path, at: int, data: bytes) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, at, data)
        finally:
            os.close(fd)
    except OSError as error:
        raise refusal_of(error, f"write of {len(data)} bytes") from error


def _write(fd: int, at: int, data: bytes) -> None:
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.pwrite(fd, rest, at + len(data) - len(rest)) :]
    except OSError:
        os.ftruncate(fd, at)
        raise


def _read(path: Path, at: int) -> bytes:
    with path.open("rb") as file:
        return os.pread(file.fileno(), PIECE_BYTES, at)
