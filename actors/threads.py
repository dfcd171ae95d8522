"""Thread actors: an actor that owns an OS thread, for work that the loop must not do.

`setns`, a blocking netlink socket, a database connection belong to a thread. Such an actor is
pykka's own; the loop awaits its answers with no helper thread between:

    ref = await Writer.spawn(path)
    rows = await call_thread(ref, Flush())

What its handler raises is an answer and reaches the caller; the thread lives on. It is not in
`pykka.ActorRegistry`, and it ends with the block that `spawn_thread` is given, or by `stop`.
"""

import queue
from typing import Any, ClassVar, Self

import pykka
import trio

from .exits import Exit, Kind, MailboxFull, StartFailed
from .future import Future, wait_for
from .pykka_compat import ActorInbox, Envelope, ThreadLoop, is_stop
from .reference import CALL_TIMEOUT_S, call_any


class ThreadInbox:
    """A bounded inbox that never blocks the loop: a full one refuses the loop, and has other
    threads wait."""

    def __init__(self, bound: int | None) -> None:
        self._queue: queue.Queue[Envelope[Any]] = queue.Queue(bound or 0)

    def put(self, envelope: Envelope[Any], /) -> None:
        """Take a message."""
        if is_stop(envelope.message):
            self._put_stop(envelope)
        elif trio.lowlevel.in_trio_run():
            try:
                self._queue.put_nowait(envelope)
            except queue.Full:
                raise MailboxFull(f"{self._queue.maxsize} messages wait for the thread") from None
        else:
            self._queue.put(envelope)

    def _put_stop(self, envelope: Envelope[Any]) -> None:
        """An order to stop is taken beyond the bound."""
        with self._queue.mutex:
            self._queue.queue.append(envelope)
            self._queue.unfinished_tasks += 1
            self._queue.not_empty.notify()

    def get(self) -> Envelope[Any]:
        """The next message; waits for one."""
        return self._queue.get()

    def get_now(self) -> Envelope[Any] | None:
        """The next message if one is there."""
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def unget(self, envelope: Envelope[Any]) -> None:
        """Put a message back before all others."""
        with self._queue.mutex:
            self._queue.queue.appendleft(envelope)
            self._queue.not_empty.notify()

    def empty(self) -> bool:
        """Whether nothing waits."""
        return self._queue.empty()

    def depth(self) -> int:
        """How many wait."""
        return self._queue.qsize()


class ThreadActor(ThreadLoop):
    """The base of actors that own a thread."""

    use_daemon_thread: ClassVar[bool] = True
    inbox_bound: ClassVar[int | None] = 256

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._up: Future[None] | None = None

    @classmethod
    def new_inbox(cls) -> ActorInbox:
        """The bounded inbox."""
        return ThreadInbox(cls.inbox_bound)

    @classmethod
    def start(  # pyright: ignore[reportIncompatibleMethodOverride]  # ActorRef is invariant
        cls, *args: Any, **kwargs: Any
    ) -> pykka.ActorRef[Self]:
        """Start the thread; returns before `on_start` has run."""
        actor = cls(*args, **kwargs)
        actor.start_loop()
        return actor.actor_ref

    @classmethod
    async def spawn(
        cls, *args: Any, start_timeout_s: float = 30.0, **kwargs: Any
    ) -> pykka.ActorRef[Self]:
        """Start the thread, and return once `on_start` is done. Raises StartFailed."""
        try:
            actor = cls(*args, **kwargs)
        except Exception as error:
            raise StartFailed(cls.__name__, Exit(Kind.CRASH, "init", error)) from error
        up: Future[None] = Future()
        actor._up = up
        actor.start_loop()
        ref = actor.actor_ref
        del actor
        try:
            with trio.fail_after(start_timeout_s):
                await up.wait()
        except Exception as error:
            reason = Exit(Kind.CRASH, type(error).__name__, error)
            ref.stop(block=False)
            raise StartFailed(cls.__name__, reason) from error
        return ref

    def announce_start(self, error: BaseException | None) -> None:
        """Tell `spawn` how `on_start` went."""
        if self._up is not None:
            if error is None:
                self._up.set(None)
            else:
                self._up.set_error(error)

    def take_waiting(self, limit: int) -> list[Envelope[Any]]:
        """Take up to `limit` more messages, for work that is cheaper in batches.

        Whoever takes them answers them: `envelope.reply_to.set(...)` where it is not None. An
        order to stop is left where it is.
        """
        inbox = self.actor_inbox
        assert isinstance(inbox, ThreadInbox)
        taken: list[Envelope[Any]] = []
        while len(taken) < limit:
            envelope = inbox.get_now()
            if envelope is None:
                break
            if is_stop(envelope.message):
                inbox.unget(envelope)
                break
            taken.append(envelope)
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
