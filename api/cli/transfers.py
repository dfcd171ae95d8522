"""A client of Transfer: one call, with its streams beside it.

Progress arrives on one stream; on the other the daemon asks for a registry's credentials, which
are looked up in Docker's configuration here, with the user's own files and helpers.
"""

import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from ...actors.errors import PermissionDenied, Refusal
from ...storage.registry.auth import Credentials
from ...storage.registry.credentials import HUB, DockerConfig, host_of
from ..grpc.call import PULL_RATE
from ..grpc.client import ClientCall
from ..proto import transfer_types_pb2 as types
from ..proto.services import streaming_pb2, transfer_pb2
from ..streams import packed, unpacked
from .session import Session

Tell = Callable[[types.Progress], None]
LAST_WORDS_WITHIN_S = 5.0


@dataclass(slots=True)
class Keeper:
    """Answers for a user: what Docker's configuration keeps for the host that is asked about."""

    config: DockerConfig
    warn: Callable[[str], None]
    asked: str = ""  # the host that was asked about last
    answered: bool = False

    async def answer(self, question: types.AuthRequest) -> types.AuthResponse:
        """The answer to one question. Where nothing can be found out, none are given."""
        self.asked = host_of(question.host)
        try:
            found = await self.config.find(question.host)
        except Refusal as refusal:
            self.warn(f"{refusal}; asking {self.asked} without credentials")
            found = Credentials()
        self.answered = found != Credentials()
        if found.header:
            return types.AuthResponse(authType=types.HEADER, secret=found.header)
        if found.username:
            return types.AuthResponse(
                authType=types.CREDENTIALS, username=found.username, secret=found.secret
            )
        if found.secret:
            return types.AuthResponse(authType=types.REFRESH, secret=found.secret)
        return types.AuthResponse(authType=types.NONE)

    def advise(self, refusal: PermissionDenied, host: str) -> PermissionDenied:
        """The refusal, with what can be done about it."""
        host = self.asked or host
        command = "holdfast login" if host == HUB else f"holdfast login {host}"
        shown = f"those of {self.config.path} were shown; " if self.answered else ""
        return PermissionDenied(f"{refusal}: {shown}try `{command}`")


async def transfer(
    session: Session,
    source: Message,
    destination: Message,
    *,
    registry: types.OCIRegistry,
    keeper: Keeper,
    tell: Tell,
    bytes_per_s: int = 0,
) -> None:
    """Have it done, `registry` being one of the two. Left early, the daemon stops too.

    A pull brings at most so many bytes a second, unless that is 0.
    """
    metadata = {PULL_RATE: str(bytes_per_s)} if bytes_per_s else {}
    refused: list[Refusal] = []
    async with _opened(session) as (asking, asked), _opened(session) as (telling, told):
        registry.resolver.auth_stream = asking
        request = transfer_pb2.TransferRequest(
            source=packed(source), destination=packed(destination)
        )
        request.options.progress_stream = telling
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, asked, keeper)
            ended = trio.Event()
            nursery.start_soon(_listen, told, tell, ended)
            try:
                await session.call("Transfer/Transfer", request, Empty, None, metadata)
                with trio.move_on_after(LAST_WORDS_WITHIN_S):
                    await ended.wait()
            except Refusal as refusal:
                # Raised below, out of the nursery that would wrap it.
                refused.append(refusal)
            nursery.cancel_scope.cancel()
    if refused:
        raise refused[0]


@asynccontextmanager
async def _opened(session: Session) -> AsyncGenerator[tuple[str, ClientCall[AnyMessage]]]:
    """A stream that the daemon finds by its name."""
    name = uuid.uuid4().hex
    async with session.stream("Streaming/Stream", AnyMessage) as call:
        await call.send(packed(streaming_pb2.StreamInit(id=name)))
        await call.receive()  # it can be found now
        yield name, call


async def _answer(call: ClientCall[AnyMessage], keeper: Keeper) -> None:
    async for message in call:
        question = unpacked(message, types.AuthRequest)
        await call.send(packed(await keeper.answer(question)))


async def _listen(call: ClientCall[AnyMessage], tell: Tell, ended: trio.Event) -> None:
    async for message in call:
        tell(unpacked(message, types.Progress))
    ended.set()
