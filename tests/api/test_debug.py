"""The debug socket: just enough HTTP, and what the daemon is doing."""

import http.client
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from holdfast.api.debug import PAGES, serve
from holdfast.api.grpc.server import listen_unix


@pytest.fixture
async def path(tmp_path: Path, nursery: trio.Nursery) -> Path:
    path = tmp_path / "debug.sock"
    nursery.start_soon(serve, await listen_unix(path))
    return path


class Unix(http.client.HTTPConnection):
    """The standard library's client, on a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("debug", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


async def ask(path: Path, page: str, method: str = "GET") -> tuple[int, str]:
    def work() -> tuple[int, str]:
        connection = Unix(path)
        try:
            connection.request(method, page)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    with trio.fail_after(20):
        return await trio.to_thread.run_sync(work)


async def test_tasks_and_threads_are_told_with_their_stacks(path: Path) -> None:
    status, text = await ask(path, "/debug/pprof/goroutine?debug=2")
    assert status == 200
    assert "task holdfast.api.debug.serve:" in text
    assert "in ask" in text
    assert "thread MainThread:" in text
    status, text = await ask(path, "/debug/pprof/threadcreate")
    assert "thread MainThread:" in text
    assert "task " not in text


async def test_objects_are_counted_by_type(path: Path) -> None:
    status, text = await ask(path, "/debug/pprof/heap")
    assert status == 200
    assert text.splitlines()[0].endswith("in all")
    assert "builtins.dict" in text


async def test_a_profile_counts_the_stacks_of_the_loop(path: Path) -> None:
    status, text = await ask(path, "/debug/pprof/profile?seconds=0.3")
    assert status == 200
    counts = [int(line.rpartition(" ")[2]) for line in text.splitlines()]
    assert 3 <= sum(counts) <= 31
    assert "trio._core._run" in text


@pytest.mark.parametrize(
    ("page", "method", "status"),
    [
        ("/debug/pprof/block", "GET", 404),
        ("/", "GET", 404),
        ("/debug/pprof/heap", "POST", 400),
        ("/debug/pprof/profile?seconds=soon", "GET", 400),
        ("/debug/pprof/profile?seconds=nan", "GET", 400),
        ("/debug/pprof/profile?seconds=1e9", "GET", 400),
    ],
)
async def test_what_is_not_there_is_refused(
    path: Path, page: str, method: str, status: int
) -> None:
    answered, text = await ask(path, page, method)
    assert answered == status
    assert text.endswith("\n")
    assert status != 404 or all(each in text for each in PAGES)


@pytest.mark.parametrize(
    "speak",
    [
        lambda sock: sock.close(),
        lambda sock: sock.sendall(b"\x00" * (64 << 10)),
        lambda sock: sock.sendall(b"GET / HTTP/1.1"),
        lambda sock: sock.shutdown(socket.SHUT_WR),
    ],
)
async def test_whoever_speaks_no_http_harms_nobody(
    path: Path, speak: Callable[[socket.socket], None]
) -> None:
    def work() -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            try:
                speak(sock)
            except OSError:
                pass  # it was hung up on

    await trio.to_thread.run_sync(work)
    assert (await ask(path, "/debug/pprof/threadcreate"))[0] == 200
