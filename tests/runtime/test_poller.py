"""The poller, run in a child process: SIGCHLD and the wakeup descriptor are a process's own."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.runtime.poller import Event, Poller


@pytest.fixture
def made() -> Iterator[Callable[..., Poller]]:
    """Makes a poller, and gives SIGCHLD back to the test's own loop afterwards."""
    handler = signal.getsignal(signal.SIGCHLD)
    wakeup = signal.set_wakeup_fd(-1)
    pollers: list[Poller] = []

    def make(on_orphan: Callable[[int, int], None] = lambda pid, status: None) -> Poller:
        pollers.append(Poller(on_orphan))
        return pollers[-1]

    yield make
    for poller in pollers:
        poller.close()
    signal.signal(signal.SIGCHLD, handler)
    signal.set_wakeup_fd(wakeup)


def test_a_coroutine_waits_for_its_child_while_others_go_on(made) -> None:
    orphans: list[tuple[int, int]] = []
    poller = made(lambda pid, status: orphans.append((pid, status)))
    order: list[object] = []

    async def wait() -> None:
        pid = os.posix_spawn("/bin/sh", ["sh", "-c", "sleep 0.1; exit 3"], {})
        status = await poller.child(pid)
        order.append(os.waitstatus_to_exitcode(status))
        poller.stop()

    async def tick() -> None:
        await poller.sleep(0.01)
        order.append("tick")

    poller.spawn(wait())
    poller.spawn(tick())
    stranger = os.posix_spawn("/bin/true", ["true"], {})
    poller.run()
    assert order == ["tick", 3]
    assert orphans == [(stranger, 0)]


def test_an_event_wakes_all_and_stays_set(made) -> None:
    poller = made()
    event = Event(poller)
    woken: list[int] = []

    async def wait(number: int) -> None:
        await event
        await event
        woken.append(number)

    for number in (1, 2):
        poller.spawn(wait(number))
    poller.later(0.01, event.set)
    poller.later(0.02, event.set)
    poller.later(0.03, poller.stop)
    poller.run()
    assert woken == [1, 2]


def test_a_watch_ends_when_it_is_told_to(made) -> None:
    poller = made()
    read, write = os.pipe()
    seen: list[bytes] = []

    def first(events: int) -> None:
        seen.append(os.read(read, 1))
        poller.watch(read, select.EPOLLIN, second)

    def second(events: int) -> None:
        seen.append(os.read(read, 1))
        poller.unwatch(read)
        poller.unwatch(read)
        poller.later(0.01, poller.stop)

    poller.watch(read, select.EPOLLIN, first)
    os.write(write, b"abc")
    begin = time.monotonic()
    poller.run()
    assert seen == [b"a", b"b"]
    assert time.monotonic() - begin < 5
    os.close(read)
    os.close(write)


def test_a_changed_file_is_told_of_while_one_asks(made, tmp_path: Path) -> None:
    poller = made()
    seen: list[str] = []

    def turn() -> list[str]:
        seen.clear()
        poller.later(0.05, poller.stop)
        poller._stopped = False
        poller.run()
        return sorted(set(seen))

    with poller.told_of(str(tmp_path), lambda: seen.append("first")):
        assert turn() == []
        (tmp_path / "pid").write_text("1")
        assert turn() == ["first"]
        with poller.told_of(str(tmp_path), lambda: seen.append("second")):
            os.rename(tmp_path / "pid", tmp_path / "other")
            assert turn() == ["first", "second"]
        (tmp_path / "pid").write_text("2")
        assert turn() == ["first"]
    (tmp_path / "pid").write_text("3")
    assert turn() == []


def test_who_asks_for_a_directory_that_is_gone_is_told_so(made, tmp_path: Path) -> None:
    poller = made()
    with pytest.raises(FileNotFoundError), poller.told_of(str(tmp_path / "gone"), print):
        raise AssertionError("told of what is not there")
    (tmp_path / "going").mkdir()
    with poller.told_of(str(tmp_path / "going"), print):
        (tmp_path / "going").rmdir()
