"""A move: what one call of Transfer asks for, translated for `storage/transfer.py` and done.

Source and destination are messages of `containerd.types.transfer`; archives and progress travel
on streams that the client has opened beside (`streams.py`).
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from google.protobuf.any_pb2 import Any as AnyMessage

from ..actors.errors import Cancelled, Unimplemented
from ..storage.platform import Platform, host
from ..storage.registry.auth import AskCredentials, Credentials, no_credentials
from ..storage.transfer import (
    Export,
    ImageStore,
    Progress,
    Reference,
    RegistryPlace,
    Report,
    Transfers,
    Unpack,
)
from .anys import type_name
from .grpc.call import Context
from .proto import transfer_types_pb2 as types
from .proto import types_pb2
from .streams import ByteReader, ByteWriter, OpenStream, Streams, unpacked
from .types import descriptor_to, platform_from

PREFIX = "containerd.types.transfer."
REPORT_WITHIN_S = 5.0


class Move:
    """One call of Transfer."""

    def __init__(
        self, transfers: Transfers, streams: Streams, context: Context, report: Report
    ) -> None:
        self._transfers = transfers
        self._streams = streams
        self._namespace = context.namespace()
        self._lease = context.lease() or ""
        self._bytes_per_s = context.pull_rate()
        self._report = report

    async def run(self, source: AnyMessage, destination: AnyMessage) -> None:
        """Translate what the two are, and have it done."""
        match _kind(source), _kind(destination):
            case "ImageImportStream", "ImageStore":
                await self._import(unpacked(source, types.ImageImportStream), _store(destination))
            case "ImageStore", "ImageExportStream":
                await self._export(_store(source), unpacked(destination, types.ImageExportStream))
            case "ImageStore", "ImageStore":
                await self._transfers.tag(
                    self._namespace,
                    _store(source),
                    _store(destination),
                    self._report,
                    lease=self._lease,
                )
            case "OCIRegistry", "ImageStore":
                async with self._place(source) as (place, ask):
                    await self._transfers.pull(
                        self._namespace,
                        place,
                        _store(destination),
                        ask,
                        self._report,
                        lease=self._lease,
                    )
            case "ImageStore", "OCIRegistry":
                async with self._place(destination) as (place, ask):
                    await self._transfers.push(
                        self._namespace, _store(source), place, ask, self._report
                    )
            case _:
                raise Unimplemented(
                    f"method Transfer not implemented for {source.type_url[:200]}"
                    f" to {destination.type_url[:200]}"
                )

    @asynccontextmanager
    async def _place(
        self, message: AnyMessage
    ) -> AsyncGenerator[tuple[RegistryPlace, AskCredentials]]:
        """The registry, and what asks the client for credentials on the stream it named."""
        registry = unpacked(message, types.OCIRegistry)
        resolver = registry.resolver
        if resolver.http_debug != types.DISABLED:
            raise Unimplemented("http_debug of a registry: not implemented")
        place = RegistryPlace(
            reference=registry.reference,
            headers=dict(resolver.headers),
            hosts=Path(resolver.host_dir) if resolver.host_dir else None,
            scheme=resolver.default_scheme,
            bytes_per_s=self._bytes_per_s,
        )
        if not resolver.auth_stream:
            yield place, no_credentials
            return
        with self._streams.take(self._namespace, resolver.auth_stream) as stream:
            yield place, partial(_ask, stream, registry.reference)

    async def _import(self, source: types.ImageImportStream, destination: ImageStore) -> None:
        if source.force_compress:
            raise Unimplemented("import with force_compress: not implemented")
        with self._streams.take(self._namespace, source.stream) as stream:
            await self._transfers.take_in(
                self._namespace, ByteReader(stream), destination, self._report, lease=self._lease
            )

    async def _export(self, source: ImageStore, destination: types.ImageExportStream) -> None:
        export = Export(
            platforms=_platforms(destination.platforms),
            all_platforms=destination.all_platforms,
            docker_manifest=not destination.skip_compatibility_manifest,
            distributable_only=destination.skip_non_distributable,
        )
        with self._streams.take(self._namespace, destination.stream) as stream:
            await self._transfers.give_out(
                self._namespace, source, export, ByteWriter(stream).write, self._report
            )


@asynccontextmanager
async def reporting(streams: Streams, context: Context, name: str) -> AsyncGenerator[Report]:
    """What sends progress to the client's stream, if it named one."""
    if not name:
        yield _silent
        return
    with streams.take(context.namespace(), name) as stream:
        yield _Reporter(stream).report


async def _ask(stream: OpenStream, reference: str, host_name: str) -> Credentials:
    """What the client has for a registry's host."""
    await stream.send(types.AuthRequest(host=host_name, reference=reference))
    answer = await stream.receive()
    if answer is None:
        return Credentials()
    given = unpacked(answer, types.AuthResponse)
    match given.authType:
        case types.CREDENTIALS:
            return Credentials(username=given.username, secret=given.secret)
        case types.REFRESH:
            return Credentials(secret=given.secret)
        case types.HEADER:
            return Credentials(header=given.secret)
        case _:
            return Credentials()


async def _silent(_: Progress) -> None:
    await trio.lowlevel.checkpoint()


class _Reporter:
    """Tells a client how far it is; one that does not listen holds nothing up."""

    def __init__(self, stream: OpenStream) -> None:
        self._stream = stream
        self._listening = True

    async def report(self, progress: Progress) -> None:
        if not self._listening:
            return
        message = types.Progress(
            event=progress.event,
            name=progress.name,
            parents=list(progress.parents),
            progress=progress.progress,
            total=progress.total,
        )
        if progress.descriptor is not None:
            message.desc.CopyFrom(descriptor_to(progress.descriptor))
        with trio.move_on_after(REPORT_WITHIN_S) as scope:
            try:
                await self._stream.send(message)
            except Cancelled:
                self._listening = False
        if scope.cancelled_caught:
            self._listening = False


def _kind(message: AnyMessage) -> str:
    name = type_name(message.type_url)
    return name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""


def _store(message: AnyMessage) -> ImageStore:
    store = unpacked(message, types.ImageStore)
    return ImageStore(
        name=store.name,
        labels=dict(store.labels),
        platforms=_platforms(store.platforms),
        all_metadata=store.all_metadata,
        manifests_max=store.manifest_limit,
        references=[
            Reference(
                name=one.name,
                is_prefix=one.is_prefix,
                allow_overwrite=one.allow_overwrite,
                add_digest=one.add_digest,
                skip_named_digest=one.skip_named_digest,
            )
            for one in store.extra_references
        ],
        unpacks=[
            Unpack(
                platform=platform_from(one.platform) if one.HasField("platform") else host(),
                snapshotter=one.snapshotter,
            )
            for one in store.unpacks
        ],
    )


def _platforms(messages: Iterable[types_pb2.Platform]) -> Sequence[Platform]:
    return [platform_from(message) for message in messages]
