"""A connection of the daemon to one of its helper processes, over frames.

One task (`run`) reads; any number of tasks call. A call ends with the answer, with the refusal
that was answered, with DeadlineExceeded, or with Unavailable when the connection is lost: no call
outlives it. Events go to the function given to `run`, in the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import trio

from ..actors.eager import EagerStream, Holding
from ..actors.errors import DeadlineExceeded, Refusal, Unavailable
from . import frames

READ_BYTES_MAX = 65536


class _Answer:
    """Where a caller waits for its answer."""

    __slots__ = ("error", "event", "ok")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.ok: Mapping[str, Any] = {}
        self.error: Refusal | None = None


class Connection:
    """Calls out, answers and events in. Made by `over`; of use while `run` runs."""

    def __init__(self, stream: trio.abc.Stream, peer: str, hello: Mapping[str, Any]) -> None:
        self.peer = peer
        self.hello = hello
        self.closed = trio.Event()
        self._stream = stream
        self._decoder = frames.Decoder()
        self._early: list[dict[str, Any]] = []
        self._send_lock = trio.Lock()
        self._waiting: dict[int, _Answer] = {}
        self._last_id = 0

    @classmethod
    async def over(cls, stream: trio.abc.Stream, peer: str, timeout_s: float) -> Self:
        """Reads the peer's hello; Unavailable when it does not come or speaks another version."""
        if isinstance(stream, trio.SocketStream):
            stream = EagerStream(stream)
        self = cls(stream, peer, {})
        try:
            with trio.fail_after(timeout_s):
                while not self._early:
                    data = await stream.receive_some(READ_BYTES_MAX)
                    if not data:
                        raise Unavailable(f"{peer}: closed before its hello")
                    self._early.extend(self._decoder.feed(data))
        except (trio.TooSlowError, trio.BrokenResourceError, frames.FrameError) as error:
            await trio.aclose_forcefully(stream)
            raise Unavailable(f"{peer}: no hello: {error!r}") from error
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self.hello = self._early.pop(0)
        version = self.hello.get("holdfast")
        if version not in range(frames.PROTOCOL_OLDEST, frames.PROTOCOL_VERSION + 1):
            await trio.aclose_forcefully(stream)
            raise Unavailable(f"{peer}: speaks another protocol: {self.hello}")
        return self

    async def run(self, on_event: Callable[[Mapping[str, Any]], None]) -> None:
        """Reads until the connection ends. `on_event` gets each event and must not block."""
        try:
            for message in self._early:
                self._take(message, on_event)
            self._early.clear()
            while True:
                data = await self._stream.receive_some(READ_BYTES_MAX)
                if not data:
                    return
                for message in self._decoder.feed(data):
                    self._take(message, on_event)
        except (trio.BrokenResourceError, trio.ClosedResourceError, frames.FrameError):
            return
        finally:
            self._lose()
            await trio.aclose_forcefully(self._stream)

    async def call(self, do: str, /, *, timeout_s: float, **fields: Any) -> Mapping[str, Any]:
        """Sends one request and waits for its answer."""
        if self.closed.is_set():
            raise Unavailable(f"{self.peer}: connection lost")
        self._last_id += 1
        number = self._last_id
        answer = self._waiting[number] = _Answer()
        try:
            with trio.move_on_after(timeout_s) as scope:
                await self._send(frames.encode({"id": number, "do": do, **fields}))
                await answer.event.wait()
        finally:
            self._waiting.pop(number, None)
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"{self.peer}: {do}: no answer in {timeout_s} s")
        if answer.error is not None:
            raise answer.error
        return answer.ok

    async def aclose(self) -> None:
        """Ends the connection; the peer lives on."""
        self._lose()
        await trio.aclose_forcefully(self._stream)

    async def _send(self, frame: bytes) -> None:
        # A frame sent in part would garble all that follow: a cancelled send ends the connection.
        try:
            async with Holding(self._send_lock):
                try:
                    await self._stream.send_all(frame)
                except BaseException:
                    self._lose()
                    raise
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Unavailable(f"{self.peer}: connection lost") from error

    def _take(self, message: dict[str, Any], on_event: Callable[[Mapping[str, Any]], None]) -> None:
        if "event" in message:
            on_event(message)
            return
        answer = self._waiting.get(message.get("id", 0))
        if answer is None:  # its caller left
            return
        if "error" in message:
            answer.error = frames.refusal(message["error"])
        else:
            answer.ok = message.get("ok", {})
        answer.event.set()

    def _lose(self) -> None:
        self.closed.set()
        for answer in self._waiting.values():
            if not answer.event.is_set():
                answer.error = Unavailable(f"{self.peer}: connection lost")
                answer.event.set()
