"""Future: one answer, awaited on the loop or fetched from a thread.

It is pykka's future (`get`, `set`, `map`, ... do what pykka says) that trio can await. It is
set once, from any thread; it may be read many times.
"""

import functools
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, TypeVar, cast

import pykka
import trio
from outcome import Error, Outcome, Value
from trio.lowlevel import Abort, RaiseCancelT, reschedule, wait_task_rescheduled

from .exits import WouldBlockLoop
from .pykka_compat import HookedFuture

T = TypeVar("T")
M = TypeVar("M")
R = TypeVar("R")
J = TypeVar("J")

_LOCK: Final = threading.Lock()  # publishes results between threads; held for a few bytecodes


class Future(HookedFuture[T]):
    """An answer that is there, or on its way."""

    outcome: Outcome[T] | None = None
    withdrawn = False
    """The caller no longer waits: a request still queued is skipped, an answer dropped."""

    _waiters: list[Callable[[], None]] | None = None
    # How a derived future is awaited: its sources, then what is made of their values.
    _derivation: tuple[Sequence[pykka.Future[Any]], Callable[[list[Any]], Any]] | None = None

    def __repr__(self) -> str:
        return f"<Future {self.outcome or 'pending'}>"

    def done(self) -> bool:
        """Whether the answer is there."""
        return self.outcome is not None

    # -- answering

    def set(self, value: Any = None) -> None:
        """Answer with a value; raises `queue.Full` on a second answer, as pykka's do."""
        self._publish(Value(cast("T", value)))

    def set_exception(self, exc_info: Any = None) -> None:
        """Answer with the exception being handled, or with an `exc_info` triple."""
        kind, error, traceback = exc_info or sys.exc_info()
        if error is None:
            assert kind is not None
            error = kind()
        if error.__traceback__ is not traceback:
            error = error.with_traceback(traceback)
        self._publish(Error(error))

    def set_error(self, error: BaseException) -> None:
        """Answer with an exception."""
        self._publish(Error(error))

    def set_get_hook(self, func: Any) -> None:
        """Let `get` compute the answer; refused once there is one."""
        if self.outcome is not None:
            raise queue.Full
        super().set_get_hook(func)

    def _publish(self, result: Outcome[T]) -> None:
        with _LOCK:
            if self.outcome is not None or self.hooked:
                raise queue.Full
            self.outcome = result
            waiters, self._waiters = self._waiters, None
        for wake in waiters or ():
            wake()

    def _wake_later(self, wake: Callable[[], None]) -> bool:
        """Have `wake` called with the answer; False when that is there already."""
        with _LOCK:
            if self.outcome is not None:
                return False
            if self._waiters is None:
                self._waiters = []
            self._waiters.append(wake)
            return True

    def _answer(self) -> T:
        result = self.outcome
        assert result is not None
        if isinstance(result, Error):
            raise result.error  # not unwrap(), which may be called only once
        return cast("Value[T]", result).value

    # -- from a thread

    def get(self, *, timeout: float | None = None) -> T:
        """Block this thread until the answer is there. Refused on the loop's own thread."""
        if self.hooked:
            return super().get(timeout=timeout)
        if self.outcome is None:
            if trio.lowlevel.in_trio_run():
                raise WouldBlockLoop("Future.get() on the loop: await the future instead")
            arrived = threading.Event()
            if self._wake_later(arrived.set) and not arrived.wait(timeout):
                raise pykka.Timeout(f"{timeout} seconds")
        return self._answer()

    # -- on the loop

    async def wait(self) -> T:
        """Wait for the answer; raises what the actor raised."""
        if self._derivation is not None:
            sources, derive = self._derivation
            return cast("T", derive([await wait_for(source) for source in sources]))
        if self.hooked:
            return await trio.to_thread.run_sync(self.get, abandon_on_cancel=True)
        if self.outcome is not None:
            await trio.lowlevel.checkpoint()
            return self._answer()
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        home = threading.get_ident()

        def wake() -> None:
            nonlocal task
            if threading.get_ident() != home:
                try:
                    token.run_sync_soon(wake)
                except trio.RunFinishedError:
                    pass  # the loop ended, and its waiters with it
                return
            waiting, task = task, None
            if waiting is not None:
                reschedule(waiting)

        def abort(_: RaiseCancelT) -> Abort:
            nonlocal task
            task = None
            return Abort.SUCCEEDED

        if self._wake_later(wake):
            await wait_task_rescheduled(abort)
        return self._answer()

    def __await__(self) -> Generator[Any, Any, T]:
        if trio.lowlevel.in_trio_run():
            return self.wait().__await__()
        return super().__await__()  # under another loop pykka's own, blocking way

    __iter__ = __await__

    # -- derived futures: pykka's hook for threads, and beside it a way to await them

    def map(self, func: Callable[[T], M]) -> "Future[M]":
        """The answer passed through `func`."""
        return _derive(super().map(func), [self], lambda values: func(values[0]))

    def filter(self: "Future[Iterable[J]]", func: Callable[[J], bool]) -> "Future[Iterable[J]]":
        """The items of the answer for which `func` holds."""
        items: pykka.Future[Any] = self
        base: Any = pykka.Future
        return _derive(
            base.filter(items, func),
            [self],
            lambda values: [item for item in values[0] if func(item)],
        )

    def join(self: "Future[Any]", *futures: pykka.Future[Any]) -> "Future[Iterable[Any]]":
        """The answers of all, as a list."""
        return _derive(super().join(*futures), [self, *futures], list)

    def reduce(self: "Future[Iterable[J]]", func: Callable[[R, J], R], *args: R) -> "Future[R]":
        """The items of the answer folded with `func`."""
        items: pykka.Future[Any] = self
        base: Any = pykka.Future
        return _derive(
            base.reduce(items, func, *args),
            [self],
            lambda values: functools.reduce(func, values[0], *args),
        )


def _derive(
    hooked: pykka.Future[M],
    sources: Sequence[pykka.Future[Any]],
    derive: Callable[[list[Any]], Any],
) -> Future[M]:
    future = cast("Future[M]", hooked)
    future._derivation = (sources, derive)  # pyright: ignore[reportPrivateUsage]
    return future


async def wait_for(future: pykka.Future[T]) -> T:
    """Await any future of pykka's on the loop; one that is not ours costs a worker thread."""
    if isinstance(future, Future):
        ours: Future[T] = future
        return await ours.wait()
    return await trio.to_thread.run_sync(future.get, abandon_on_cancel=True)
