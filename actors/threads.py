"""Thread actors: an actor that owns an OS thread, for work that the loop must not do.

`setns`, a blocking netlink socket, a database connection belong to a thread. Such an actor is
pykka's own; the loop awaits its answers with no helper thread between:

    ref = await Writer.spawn(path)
    rows = await call_thread(ref, Flush())

An exception of its handler is an answer: it reaches the caller, and the thread lives on. Where
nobody asked, and for what is no `Exception` (SystemExit), it ends the actor; the caller, and all
who wait, are told at once, and the latter ends the system too.

It ends by `stop_thread`, and at the latest with the system in which it was started, in its
place among the actors. Without a system it is its starter's to stop. It is not in
`pykka.ActorRegistry`.
"""

import logging
import queue
import threading
from collections import deque
from typing import Any, ClassVar, Self, cast

import pykka
import trio

from .exits import NORMAL, ActorExited, Exit, Kind, MailboxFull, StartFailed
from .future import Future, wait_for
from .mailbox import refuse
from .pykka_compat import ActorInbox, Envelope, ThreadLoop, is_stop
from .reference import CALL_TIMEOUT_S, call_any
from .system import System

log = logging.getLogger(__name__)


class ThreadInbox:
    """A bounded inbox that never blocks the loop: a full one refuses the loop, and has other
    threads wait. Invariant: once closed it takes nothing, so no caller is left without an
    answer."""

    def __init__(self, bound: int | None) -> None:
        self.bound = bound
        self._queue: deque[Envelope[Any]] = deque()
        self._closed: Exit | None = None
        lock = threading.Lock()
        self._not_empty = threading.Condition(lock)
        self._not_full = threading.Condition(lock)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Take a message; an order to stop is taken beyond the bound."""
        with self._not_full:
            while self._closed is None and self._full() and not is_stop(envelope.message):
                if trio.lowlevel.in_trio_run():
                    raise MailboxFull(f"{self.bound} messages wait for the thread")
                self._not_full.wait()
            if self._closed is None:
                self._queue.append(envelope)
                self._not_empty.notify()
                return
        if envelope.reply_to is None:
            raise ActorExited("thread", self._closed)
        refuse(envelope, ActorExited("thread", self._closed))

    def get(self) -> Envelope[Any]:
        """The next message; waits for one."""
        with self._not_empty:
            while not self._queue:
                self._not_empty.wait()
            self._not_full.notify()
            return self._queue.popleft()

    def get_unless_stop(self) -> Envelope[Any] | None:
        """The next message if one is there, and is no order to stop."""
        with self._not_empty:
            if not self._queue or is_stop(self._queue[0].message):
                return None
            self._not_full.notify()
            return self._queue.popleft()

    def close(self, reason: Exit) -> None:
        """Refuse all that is here, all who wait, and all that will come."""
        with self._not_full:
            self._closed = reason
            left, self._queue = self._queue, deque()
            self._not_full.notify_all()
        for envelope in left:
            refuse(envelope, ActorExited("thread", reason))

    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._queue

    def depth(self) -> int:
        """How many wait."""
        return len(self._queue)

    def _full(self) -> bool:
        return self.bound is not None and len(self._queue) >= self.bound


class ThreadActor(ThreadLoop):
    """The base of actors that own a thread."""

    use_daemon_thread: ClassVar[bool] = True
    inbox_bound: ClassVar[int | None] = 256

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._up: Future[None] = Future()
        self._ended: Future[Exit] = Future()
        self._system: System | None = None
        self._taken: list[Envelope[Any]] = []

    @classmethod
    def new_inbox(cls) -> ActorInbox:
        """The bounded inbox."""
        return ThreadInbox(cls.inbox_bound)

    @classmethod
    def new_future(cls) -> Future[Any]:
        """What `ref.ask` returns: the loop awaits it, and is refused to block on it."""
        return Future()

    @classmethod
    def start(  # pyright: ignore[reportIncompatibleMethodOverride]  # ActorRef is invariant
        cls, *args: Any, **kwargs: Any
    ) -> pykka.ActorRef[Self]:
        """Start the thread; returns before `on_start` has run."""
        actor = cls(*args, **kwargs)
        actor.launch()
        return actor.actor_ref

    @classmethod
    async def spawn(
        cls, *args: Any, start_timeout_s: float = 30.0, **kwargs: Any
    ) -> pykka.ActorRef[Self]:
        """Start the thread, and return once `on_start` is done. Raises StartFailed."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            actor = cls(*args, **kwargs)
        except Exception as error:
            raise StartFailed(cls.__name__, Exit(Kind.CRASH, "init", error)) from error
        actor.launch()
        ref, up = actor.actor_ref, actor._up
        del actor
        try:
            with trio.fail_after(start_timeout_s):
                await up.wait()
        except Exception as error:
            ref.stop(block=False)
            reason = Exit(Kind.CRASH, type(error).__name__, error)
            raise StartFailed(cls.__name__, reason) from error
        except BaseException:
            ref.stop(block=False)
            raise
        return ref

    def launch(self) -> None:
        """Start the thread, in the care of the system that is open here."""
        self._system = System.current_or_none()
        if self._system is not None:
            self._system.adopt_thread(self.actor_ref, self._ended)
        self.start_loop()

    # -- in the thread

    def run_loop(self) -> None:
        reason = NORMAL
        try:
            self._come_up()
            while not self.actor_stopped.is_set():
                self._answer(self._inbox.get())
        except BaseException as error:
            reason = Exit(Kind.CRASH, type(error).__name__)
            self._fall(error)
        finally:
            self.actor_stopped.set()
            self._inbox.close(reason)
            self._ended.set(reason)
            if self._system is not None:
                self._system.forget_thread(self.actor_ref)

    def _come_up(self) -> None:
        try:
            self.on_start()
        except Exception as error:
            self._up.set_error(error)
            raise
        except BaseException as error:
            reason = Exit(Kind.CRASH, type(error).__name__)
            self._up.set_error(ActorExited(self.actor_ref, reason))
            raise
        self._up.set(None)

    def _answer(self, envelope: Envelope[Any]) -> None:
        reply = envelope.reply_to
        try:
            answer = self.handle(envelope.message)
        except Exception as error:
            self._fail_taken(error)
            if reply is None:
                raise
            log.info("Exception returned from %s to caller:", self, exc_info=error)
            reply.set_exception()
        except BaseException as error:
            exited = ActorExited(self.actor_ref, Exit(Kind.CRASH, type(error).__name__, error))
            self._fail_taken(exited)
            refuse(envelope, exited)
            raise
        else:
            self._taken.clear()
            if reply is not None:
                reply.set(answer)

    def _fail_taken(self, error: BaseException) -> None:
        """Who was taken out of the inbox, and has no answer yet, gets this one."""
        while self._taken:
            try:
                refuse(self._taken.pop(), error)
            except queue.Full:
                pass  # answered before the fault

    def _fall(self, error: BaseException) -> None:
        self.report_failure(error)
        try:
            self.on_failure(type(error), error, error.__traceback__)
        except Exception as second:
            self.report_failure(second)
        if self._system is not None and not isinstance(error, Exception):
            self._system.post(self._system.end_with, error)

    @property
    def _inbox(self) -> ThreadInbox:
        return cast("ThreadInbox", self.actor_inbox)

    def take_waiting(self, limit: int) -> list[Envelope[Any]]:
        """Take up to `limit` more messages, for work that is cheaper in batches.

        Whoever takes them answers them: `envelope.reply_to.set(...)` where it is not None; when
        the handler raises, so do they. An order to stop is left where it is.
        """
        taken: list[Envelope[Any]] = []
        while len(taken) < limit:
            envelope = self._inbox.get_unless_stop()
            if envelope is None:
                break
            taken.append(envelope)
        self._taken += taken
        return taken


async def call_thread(
    ref: pykka.ActorRef[Any], message: Any, timeout_s: float | None = CALL_TIMEOUT_S
) -> Any:
    """Ask a thread actor from the loop. Raises what its handler raised, ActorExited when it is
    dead, CallTimeout, MailboxFull."""
    return await call_any(ref, message, timeout_s)


async def stop_thread(ref: pykka.ActorRef[Any], timeout_s: float | None = CALL_TIMEOUT_S) -> bool:
    """End a thread actor after the messages before this; False when it was dead already."""
    stopped: Any = ref.stop(block=False)
    with trio.fail_after(float("inf") if timeout_s is None else timeout_s):
        return bool(await wait_for(stopped))
