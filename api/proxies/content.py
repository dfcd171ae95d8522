"""Content that another process serves by containerd.services.content.v1."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ...actors.errors import DataLoss, Unknown
from ...storage.content import ContentInfo
from ...storage.digest import Digest
from ..anys import nanoseconds
from ..proto.services import content_pb2 as pb
from ..status import CallFailed
from .proxy import Proxy

SERVICE = "/containerd.services.content.v1.Content"


class ProxiedContent:
    """The `BlobSource` of storage, over the wire."""

    def __init__(self, proxy: Proxy) -> None:
        self.name = proxy.name
        self._proxy = proxy

    async def info(self, namespace: str, digest: Digest) -> ContentInfo:
        request = pb.InfoRequest(digest=digest)
        async with self._worded():
            method = f"{SERVICE}/Info"
            told = (await self._proxy.unary(method, request, pb.InfoResponse, namespace)).info
        return ContentInfo(
            digest=digest,
            size=told.size,
            labels=dict(told.labels),
            created_at=nanoseconds(told.created_at),
            updated_at=nanoseconds(told.updated_at),
        )

    async def read(self, namespace: str, digest: Digest, offset: int, size: int) -> bytes:
        request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
        pieces: list[bytes] = []
        left = size
        async with (
            self._worded(),
            self._proxy.stream(f"{SERVICE}/Read", pb.ReadContentResponse, namespace) as call,
        ):
            await call.send(request)
            await call.end()
            async for answer in call:
                # The offsets are not looked at: containerd 1.6 counts from the range's beginning.
                if len(answer.data) > left:
                    raise DataLoss(f"content {digest}: {self.name} gives more than was asked for")
                pieces.append(answer.data)
                left -= len(answer.data)
        return b"".join(pieces)

    @asynccontextmanager
    async def _worded(self) -> AsyncGenerator[None]:
        """A fault of the other side is a refusal to who asks here."""
        try:
            yield
        except CallFailed as error:
            raise Unknown(f"proxy plugin {self.name}: {error}") from error
