"""The client of one registry, opened for tests without a daemon around it."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from holdfast.storage.descriptor import Descriptor, describe
from holdfast.storage.registry.auth import AskCredentials, Credentials, no_credentials
from holdfast.storage.registry.client import Registry, open_registry
from holdfast.storage.registry.hosts import hosts_of, parse_remote
from holdfast.storage.registry.retry import Patience

BLOB = "application/octet-stream"
HASTY = Patience(first_s=0.02, within_s=5.0)


@asynccontextmanager
async def opened_registry(
    text: str,
    *,
    folders: Sequence[Path] = (),
    ask: AskCredentials = no_credentials,
    headers: dict[str, str] | None = None,
    patience: Patience = HASTY,
    scheme: str = "",
) -> AsyncGenerator[Registry]:
    """What a daemon opens for a reference."""
    remote = parse_remote(text)
    hosts = hosts_of(remote, folders, scheme)
    async with open_registry(remote, hosts, ask, headers or {}, patience) as registry:
        yield registry


class Giver:
    """Gives one answer after another to who asks for credentials, the last one for ever."""

    def __init__(self, *answers: Credentials) -> None:
        self.asked: list[str] = []
        self._answers = answers

    async def __call__(self, host: str) -> Credentials:
        self.asked.append(host)
        return self._answers[min(len(self.asked), len(self._answers)) - 1]


def blob(raw: bytes) -> Descriptor:
    """The descriptor of a blob."""
    return describe(raw, BLOB)


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    """A body that is streamed."""
    for piece in pieces:
        yield piece


async def fetched(registry: Registry, target: Descriptor, offset: int = 0) -> bytes:
    """All bytes of a target, from where the answer begins."""
    async with registry.get(target, offset) as (_, pieces):
        return b"".join([piece async for piece in pieces])
