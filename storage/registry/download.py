"""Download: a blob's bytes, from a registry into an ingest.

    async with await content.open_ingest(...) as ingest:
        await Download(ingest, directory, source, target, limits, course).run(alone=False)

A connection on which nothing comes any more is dropped, and what is lacking asked for again, from
the last byte that is kept; so is one that broke. Who gets no further in a few attempts gives up,
and the next pull goes on from there. A large blob comes through several connections, if the server
gives the ranges that it is asked for. Whether the bytes are the right ones is the caller's to see.
"""

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio

from ...actors.errors import Refusal, ResourceExhausted, Unavailable
from ..descriptor import Descriptor
from ..ingest import Ingest
from .client import Registry
from .limits import Meter, PullLimits
from .spans import Span, plan

ATTEMPTS_MAX = 5
PAUSE_S, PAUSE_MAX_S = 0.2, 5.0
# An attempt that brought as much as this counts as none.
PROGRESS_BYTES = 64 << 10
# What comes more slowly than so many bytes within the stall limit has stalled.
SLOW_BYTES = 4 << 10
# How much is gathered, and for how long, before it is kept: of what has come a small part, which is
# what a kill costs.
WRITE_BYTES, WRITE_BYTES_MAX, WRITE_PART = 128 << 10, 1 << 20, 128
WRITE_WITHIN_S = 0.5


class TooMuch(Exception):
    """The server gave more bytes than the blob has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a pull has its bytes from, and what meters them."""

    registry: Registry
    meters: Sequence[Meter] = ()


@dataclass(slots=True, kw_only=True)
class Course:
    """How far a blob has come, for those who wait for it."""

    got: int = 0
    waiting: bool = False
    """Somebody else writes it at the moment."""
    over: trio.Event = field(default_factory=trio.Event)


class Download:
    """One go at a blob; the ingest is open, and nobody else's."""

    def __init__(
        self,
        ingest: Ingest,
        directory: Path,
        source: Source,
        target: Descriptor,
        limits: PullLimits,
        course: Course,
    ) -> None:
        self._ingest = ingest
        self._directory = directory
        self._source = source
        self._target = target
        self._limits = limits
        self._course = course
        # A server has given bytes: from now on its silence is a disturbance, which may pass.
        self._met = False
        self._knows_ranges = False

    async def run(self, *, alone: bool) -> None:
        """Returns when the ingest has as many bytes as the blob; `alone`: by one connection."""
        target = self._target
        offset = (await self._ingest.state()).offset
        if offset > target.size:
            await self._ingest.truncate()
            offset = 0
        self._course.got = offset
        if offset == target.size:
            return
        range_bytes = self._limits.range_bytes
        if alone or self._limits.ranges_at_once == 1:
            range_bytes = target.size + 1
        spans = list(
            await trio.to_thread.run_sync(plan, self._directory, offset, target.size, range_bytes)
        )
        self._course.got += sum(span.at - max(span.begins, offset) for span in spans)
        try:
            while spans and not self._knows_ranges:
                span = spans.pop(0)
                await span.lead_into(self._ingest)
                await self._bring(span)
                if span.ends == target.size:
                    return
            await self._bring_several(spans)
        except ResourceExhausted as error:
            raise ResourceExhausted(self._about(error)) from error

    async def _bring_several(self, spans: Sequence[Span]) -> None:
        """Fetch some at a time, and let them into the ingest in their order."""
        at_once = self._limits.ranges_at_once
        fetching = trio.Semaphore(at_once)
        # No more lie ready in part files than this.
        ahead = trio.Semaphore(2 * at_once)

        async def fetch(span: Span) -> None:
            async with fetching:
                await self._bring(span)

        async def feed() -> None:
            for span in spans:
                await ahead.acquire()
                nursery.start_soon(fetch, span)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(feed)
                for span in spans:
                    await span.lead_into(self._ingest)
                    await span.whole.wait()
                    ahead.release()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group.exceptions[0].__cause__

    async def _bring(self, span: Span) -> None:
        """All of a span, in as many requests as it takes while there is progress."""
        attempts, began_at = 0, span.at
        while span.at < span.ends:
            try:
                await self._ask(span)
            except Unavailable as error:
                if span.at - began_at >= PROGRESS_BYTES:
                    attempts, began_at = 0, span.at
                attempts += 1
                if not self._met or attempts >= ATTEMPTS_MAX:
                    raise Unavailable(self._about(error)) from error
                pause_s = min(PAUSE_S * 2 ** (attempts - 1), PAUSE_MAX_S)
                await trio.sleep(pause_s * random.uniform(0.5, 1.0))
        span.whole.set()

    async def _ask(self, span: Span) -> None:
        """One request for what a span lacks; Unavailable when not all of it came."""
        size = self._target.size
        end = None if span.ends == size else span.ends
        # What a thread did meanwhile was no checkpoint: the claim may have left with its client.
        await trio.lowlevel.checkpoint_if_cancelled()
        async with self._source.registry.get(self._target, span.at, end) as (begins, pieces):
            self._met = True
            skipped = span.at - begins
            if skipped and self._knows_ranges:
                raise Unavailable("another range came than was asked for")
            if skipped:
                # It gives the whole, whatever it is asked for: let this be the last request.
                span.ends = size
            await self._receive(span, skipped, Watch(pieces, self._limits.stall_s))
        if span.at < span.ends:
            raise Unavailable(f"{span.at - span.begins} of {span.ends - span.begins} bytes came")
        self._knows_ranges |= span.ends < size

    async def _receive(self, span: Span, skipped: int, watch: "Watch") -> None:
        size = self._target.size
        gathered = bytearray()
        kept_at_s = trio.current_time()
        while True:
            try:
                piece = await watch.next()
            except Exception:
                # Whatever broke off, by the client or by the watch: what came is kept.
                await self._keep(span, gathered)
                raise
            if piece is None:
                break
            for meter in self._source.meters:
                await meter.take(len(piece))
            passed = min(skipped, len(piece))
            skipped -= passed
            gathered += piece[passed:]
            over = span.at + len(gathered) - span.ends
            if over > 0 and span.ends < size and not self._knows_ranges:
                span.ends, over = size, span.at + len(gathered) - size
            if over > 0 and span.ends == size:
                raise TooMuch(f"more than its {size} bytes came")
            if over > 0:
                del gathered[-over:]
            now_s = trio.current_time()
            enough = min(max(WRITE_BYTES, self._course.got // WRITE_PART), WRITE_BYTES_MAX)
            if len(gathered) >= enough or now_s - kept_at_s > WRITE_WITHIN_S:
                await self._keep(span, gathered)
                kept_at_s = now_s
            if over > 0:
                break
        await self._keep(span, gathered)

    async def _keep(self, span: Span, gathered: bytearray) -> None:
        if gathered:
            await span.put(bytes(gathered))
            self._course.got += len(gathered)
            gathered.clear()

    def _about(self, error: Refusal) -> str:
        """What went wrong, with which image and blob, and what is kept."""
        name, got, size = self._source.registry.remote.text, self._course.got, self._target.size
        why = str(error).removeprefix(f"{name}: ").removeprefix(f"{self._target.digest}: ")
        kept = f"; {got} of {size} bytes are kept, and the next pull goes on from there"
        return f"{name}: {self._target.digest}: {why}{kept if got else ''}"


class Watch:
    """Pieces as they come; Unavailable when they hardly come any more."""

    def __init__(self, pieces: AsyncIterator[bytes], stall_s: float) -> None:
        self._pieces = pieces
        self._stall_s = stall_s
        # For how long was waited while so few bytes came; what happens between is not counted.
        self._waited_s = 0.0
        self._came = 0

    async def next(self) -> bytes | None:
        """The next bytes; None at the end."""
        began_s = trio.current_time()
        piece: bytes | None = None
        # A loop that is late may have waited longer.
        with trio.move_on_after(max(self._stall_s - self._waited_s, 0.0)) as scope:
            piece = await anext(self._pieces, None)
        if scope.cancelled_caught:
            raise Unavailable(f"{self._came or 'no'} bytes came within {self._stall_s:g} s")
        self._came += len(piece or b"")
        self._waited_s += trio.current_time() - began_s
        if self._came >= SLOW_BYTES:
            self._came, self._waited_s = 0, 0.0
        return piece
