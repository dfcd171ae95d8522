"""One other side: calls to it, each with a deadline, behind its circuit breaker.

A call has a connection of its own, so that a hung one holds up no other, and a plugin that was
started anew is found without anyone noticing.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import trio
from google.protobuf.message import Message

from ...actors.errors import DeadlineExceeded, Unavailable
from ..grpc.call import NAMESPACE
from ..grpc.client import Channel, ClientCall
from .breaker import FAILURES_MAX, Breaker

Answer = TypeVar("Answer", bound=Message)


class Proxy:
    """A plugin's address. Unavailable when nobody answers there, DeadlineExceeded when not in
    time, else whatever it answers."""

    def __init__(
        self,
        name: str,
        address: str,
        within_s: float,
        *,
        failures_max: int = FAILURES_MAX,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.within_s = within_s
        self._address = address.removeprefix("unix://")
        self._breaker = Breaker(f"proxy plugin {name} at {self._address}", failures_max)
        self._metadata = metadata or {}

    async def unary(
        self, method: str, request: Message, answer: type[Answer], namespace: str = ""
    ) -> Answer:
        """One request, one answer."""
        async with self._asking() as channel:
            return await channel.unary(
                method, request, answer, self._told(namespace), timeout_s=self.within_s
            )

    @asynccontextmanager
    async def stream(
        self, method: str, answer: type[Answer], namespace: str = ""
    ) -> AsyncGenerator[ClientCall[Answer]]:
        """A call of any kind; the deadline is for all of it."""
        async with self._asking() as channel:
            metadata = self._told(namespace)
            async with channel.stream(method, answer, metadata, self.within_s) as call:
                yield call

    @asynccontextmanager
    async def _asking(self) -> AsyncGenerator[Channel]:
        breaker = self._breaker
        breaker.enter(trio.current_time())
        try:
            async with Channel.connect(self._address) as channel:
                yield channel
        except (Unavailable, DeadlineExceeded) as error:
            breaker.failed(trio.current_time(), str(error))
            raise
        except Exception:
            breaker.answered()
            raise
        except BaseException:
            breaker.withdrawn()
            raise
        breaker.answered()

    def _told(self, namespace: str) -> dict[str, str]:
        return {**self._metadata, NAMESPACE: namespace} if namespace else {**self._metadata}
