"""The debug socket: what the daemon is doing, by the paths under which `ctr pprof` asks.

It speaks just enough HTTP for that: one GET a connection. Answers are text; the profile is a line
per stack with the number of times it was seen, as flame graphs are drawn from. What Go's runtime
alone has (block, trace) is not there.
"""

import gc
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import FrameType
from typing import Final
from urllib.parse import parse_qs, urlsplit

import trio

HEAD_BYTES_MAX: Final = 16 << 10
HEAD_WITHIN_S: Final = 10.0
SECONDS_MAX: Final = 300.0
SAMPLE_EVERY_S: Final = 0.01
TYPES_MAX: Final = 100
REASONS: Mapping[int, str] = {200: "OK", 400: "Bad Request", 404: "Not Found"}


async def serve(listener: trio.SocketListener) -> None:
    """Answer whoever connects, until cancelled."""
    await trio.serve_listeners(answer, [listener])


async def answer(stream: trio.SocketStream) -> None:
    """Read one request and answer it. Whoever goes away, or is slow, is let go."""
    try:
        async with stream:
            with trio.fail_after(HEAD_WITHIN_S):
                head = await _head(stream)
            status, text = await respond(head)
            body = text.encode(errors="replace")
            lines = (
                f"HTTP/1.1 {status} {REASONS[status]}",
                "Content-Type: text/plain; charset=utf-8",
                f"Content-Length: {len(body)}",
                "Connection: close",
            )
            with trio.fail_after(HEAD_WITHIN_S):
                await stream.send_all("\r\n".join((*lines, "", "")).encode() + body)
    except (trio.BrokenResourceError, trio.TooSlowError):
        pass


async def _head(stream: trio.SocketStream) -> bytes:
    """The request up to its empty line, or up to its end, or as much of it as is read."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
        more = await stream.receive_some(HEAD_BYTES_MAX)
        if not more:
            break
        head += more
    return head


async def respond(head: bytes) -> tuple[int, str]:
    """The status and the text that answer a request."""
    words = head.partition(b"\r\n")[0].decode(errors="replace").split()
    if len(words) != 3 or words[0] != "GET":
        return 400, "only GET is understood here\n"
    url = urlsplit(words[1])
    page = PAGES.get(url.path)
    if page is None:
        return 404, f"{url.path} is not there; these are: {', '.join(PAGES)}\n"
    try:
        seconds = float(parse_qs(url.query).get("seconds", ["30"])[0])
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= SECONDS_MAX:
        return 400, f"seconds must be more than 0, and at most {SECONDS_MAX:g}\n"
    return 200, await page(seconds)


async def tasks(_: float) -> str:
    """Every task of the loop with the stack at which it waits, then every thread."""
    root = trio.lowlevel.current_root_task()
    lines = [line for task in _tasks(root) for line in _waiting(task)] if root else []
    return "\n".join([*lines, await threads(_)])


async def threads(_: float) -> str:
    """Every thread with its stack."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines: list[str] = []
    for ident, frame in _frames().items():
        lines.append(f"thread {names.get(ident, ident)}:")
        lines += [line.rstrip() for line in traceback.format_stack(frame)]
        lines.append("")
    return "\n".join(lines)


async def objects(_: float) -> str:
    """The types with the most bytes among the objects that the collector knows."""
    return await trio.to_thread.run_sync(_objects)


async def profile(seconds: float) -> str:
    """How often the loop was at which stack, looked at every hundredth of a second."""
    loop = threading.get_ident()
    return await trio.to_thread.run_sync(_profile, loop, seconds, abandon_on_cancel=True)


PAGES: Mapping[str, Callable[[float], Awaitable[str]]] = {
    "/debug/pprof/goroutine": tasks,
    "/debug/pprof/threadcreate": threads,
    "/debug/pprof/heap": objects,
    "/debug/pprof/profile": profile,
}


def _tasks(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    yield task
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _tasks(child)


def _waiting(task: trio.lowlevel.Task) -> Iterator[str]:
    yield f"task {task.name}:"
    for frame, line in task.iter_await_frames():
        code = frame.f_code
        yield f'  File "{code.co_filename}", line {line}, in {code.co_qualname}'
    yield ""


def _objects() -> str:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    known: list[object] = gc.get_objects()
    for one in known:
        kind = type(one)
        name = f"{kind.__module__}.{kind.__qualname__}"
        counts[name] += 1
        sizes[name] += sys.getsizeof(one, 0)
    lines = [f"{size:>12} bytes {counts[name]:>9}  {name}" for name, size in sizes.most_common()]
    total = f"{sizes.total():>12} bytes {counts.total():>9}  in all"
    return "\n".join([total, *lines[:TYPES_MAX], ""])


def _profile(loop: int, seconds: float) -> str:
    seen: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        frame = _frames().get(loop)
        if frame is None:
            break  # the loop has ended, and with it whoever asked
        seen[_folded(frame)] += 1
        time.sleep(SAMPLE_EVERY_S)
    return "".join(f"{stack} {count}\n" for stack, count in seen.most_common())


def _frames() -> Mapping[int, FrameType]:
    """Where each thread is; Python has no other way to ask."""
    return sys._current_frames()  # pyright: ignore[reportPrivateUsage]


def _folded(frame: FrameType | None) -> str:
    names: list[str] = []
    while frame is not None:
        module = frame.f_globals.get("__name__", "?")
        names.append(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return ";".join(reversed(names))
