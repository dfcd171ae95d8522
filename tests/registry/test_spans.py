"""What of a blob is fetched in which parts, whatever an earlier pull has left."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as draw
from trio.testing import MockClock

from holdfast.actors.errors import Unavailable
from holdfast.actors.system import System
from holdfast.storage.digest import digest_of
from holdfast.storage.ingest import Ingest, IngestActor, Order
from holdfast.storage.registry.download import Watch
from holdfast.storage.registry.limits import Meter
from holdfast.storage.registry.spans import PREFIX, plan

RANGE = 16


@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


async def publish_nothing(_: object) -> None:
    await trio.lowlevel.checkpoint()


async def ingest_in(directory: Path) -> Ingest:
    released = trio.Event()
    order = Order(
        directory=directory,
        ref="ns/ref",
        expected=None,
        shared=None,
        from_start=False,
        publish=publish_nothing,
        released=released.set,
    )
    return Ingest(await IngestActor.spawn(order), released, ref="ref")


@settings(deadline=None)
@given(
    size=draw.integers(1, 10 * RANGE),
    had=draw.integers(0, 10 * RANGE),
    parts=draw.dictionaries(draw.integers(0, 12), draw.integers(0, RANGE), max_size=6),
    one=draw.booleans(),
)
def test_what_is_planned_is_what_is_lacking(
    size: int, had: int, parts: dict[int, int], *, one: bool
) -> None:
    raw = bytes(index % 251 for index in range(size))
    had = min(had, size - 1)
    with folder() as directory:
        whole = plan(directory, 0, size, RANGE)
        # Part files as a pull that was killed leaves them, and some that fit nowhere.
        for number, length in parts.items():
            if number < len(whole):
                span = whole[number]
                path = directory / f"{PREFIX}{span.begins}-{span.ends}"
                path.write_bytes(raw[span.begins : span.ends][:length])
            else:
                (directory / f"{PREFIX}{number}-{length}").write_bytes(b"x")

        async def fetch() -> bytes:
            async with System.open():
                directory.joinpath("data").write_bytes(raw[:had])
                async with await ingest_in(directory) as ingest:
                    spans = plan(directory, had, size, size + 1 if one else RANGE)
                    assert max(spans[0].begins, had) == had
                    assert spans[-1].ends == size
                    for before, after in pairwise(spans):
                        assert before.ends == after.begins
                    # They come in any order, and go in by theirs.
                    for span in reversed(spans):
                        while span.at < span.ends:
                            await span.put(raw[span.at : min(span.at + 5, span.ends)])
                    for span in spans:
                        await span.lead_into(ingest)
                    assert (await ingest.state()).digest == digest_of(raw)
                assert sorted(path.name for path in directory.iterdir()) == ["data"]
                return directory.joinpath("data").read_bytes()

        assert trio.run(fetch) == raw


def test_nothing_that_came_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}16-32").write_bytes(bytes(9))
    (tmp_path / f"{PREFIX}32-48").write_bytes(bytes(16))
    spans = plan(tmp_path, 20, 60, RANGE)
    assert [(span.begins, span.at, span.ends) for span in spans] == [
        (16, 25, 32),
        (32, 48, 48),
        (48, 48, 60),
    ]


class Drip(AsyncIterator[bytes]):
    """So many bytes after each pause."""

    def __init__(self, size: int, pause_s: float) -> None:
        self._size, self._pause_s = size, pause_s

    async def __anext__(self) -> bytes:
        await trio.sleep(self._pause_s)
        return bytes(self._size)


class Late(AsyncIterator[bytes]):
    """Comes after the time is over, as where a loop is held up."""

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await trio.sleep(12)
        return b"x"


async def test_a_stall_is_told_however_it_drips(autojump_clock: MockClock) -> None:
    async def read(size: int, pause_s: float, within_s: float) -> int:
        watch, got = Watch(Drip(size, pause_s), 10.0), 0
        with trio.move_on_after(within_s):
            while True:
                got += len(await watch.next() or b"")
        return got

    with pytest.raises(Unavailable, match="no bytes came within 10 s"):
        await read(1, 11.0, 100.0)
    with pytest.raises(Unavailable, match="9 bytes came within 10 s"):
        await read(1, 1.1, 100.0)
    assert await read(2000, 3.0, 100.0) == 66_000
    # Neither does it matter that the loop was late to see the time.
    watch = Watch(Late(), 10.0)
    assert await watch.next()
    with pytest.raises(Unavailable):
        await watch.next()
    # What the reader does between is nobody's stall.
    watch = Watch(Drip(1000, 1.0), 10.0)
    for _ in range(3):
        assert await watch.next()
        await trio.sleep(60)


async def test_a_meter_lets_through_what_it_says(autojump_clock: MockClock) -> None:
    meter, none = Meter(1000), Meter(0)
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(meter.take, 500)
    took_s = trio.current_time() - began_s
    assert 4.7 <= took_s <= 5.0
    # Time that nobody used is not saved up.
    await trio.sleep(100)
    began_s = trio.current_time()
    await meter.take(2000)
    assert trio.current_time() - began_s == pytest.approx(1.75)
    await none.take(1 << 40)
