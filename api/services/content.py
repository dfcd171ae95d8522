"""containerd.services.content.v1: blobs by digest, and how they come to be.

A Write stream is a conversation about one ref: each message may bring bytes, ask for the state
or commit, and each is answered with where the ingest is now. Leaving the stream keeps what was
written, and the next stream goes on from there.
"""

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty

from ...actors.errors import AlreadyExists, InvalidArgument, NotFound, OutOfRange
from ...storage.content import ContentInfo, ContentStore, IngestStatus
from ...storage.digest import fault_of_digest, parse_digest
from ...storage.ingest import Ingest
from ...storage.labels import quoted
from ...storage.lentcontent import LentContent, LentIngest
from ..anys import timestamp
from ..grpc.call import Call, Context
from ..grpc.service import Service, implement
from ..proto.services import content_pb2 as pb
from .words import said_first

BATCH = 100

AnyContent = ContentStore | LentContent
AnyIngest = Ingest | LentIngest
WriteCall = Call[pb.WriteContentRequest, pb.WriteContentResponse]


def lent(content: LentContent) -> Service:
    """The service for another daemon, which uses it as its proxy plugin: where it cleans up,
    without a namespace."""
    return service(content, lambda _: "")


def service(
    content: AnyContent,
    namespace_of: Callable[[Context], str] = Context.namespace,
) -> Service:
    """The service over this store."""

    async def look_up(context: Context, digest: str) -> None:
        """Bring a blob that only another process has, unless that is who asks."""
        namespace = namespace_of(context)
        if context.is_local():
            content.info(namespace, digest)
        else:
            await content.obtain(namespace, digest, lease=context.lease() or "")

    async def info(request: pb.InfoRequest, context: Context) -> pb.InfoResponse:
        digest = parse_digest(request.digest)
        await look_up(context, digest)
        return pb.InfoResponse(info=info_to(content.info(namespace_of(context), digest)))

    async def update(request: pb.UpdateRequest, context: Context) -> pb.UpdateResponse:
        digest = parse_digest(request.info.digest)
        updated = await content.update(
            namespace_of(context),
            digest,
            dict(request.info.labels),
            tuple(request.update_mask.paths),
        )
        return pb.UpdateResponse(info=info_to(updated))

    async def list_(
        request: pb.ListContentRequest, call: Call[pb.ListContentRequest, pb.ListContentResponse]
    ) -> None:
        batch: list[pb.Info] = []
        for found in list(content.list(namespace_of(call), list(request.filters))):
            batch.append(info_to(found))
            if len(batch) == BATCH:
                await call.send(pb.ListContentResponse(info=batch))
                batch.clear()
        if batch:
            await call.send(pb.ListContentResponse(info=batch))

    async def delete(request: pb.DeleteContentRequest, context: Context) -> Empty:
        if fault := fault_of_digest(request.digest):
            raise InvalidArgument(fault)
        await content.delete(namespace_of(context), request.digest, lease=context.lease() or "")
        return Empty()

    async def read(
        request: pb.ReadContentRequest, call: Call[pb.ReadContentRequest, pb.ReadContentResponse]
    ) -> None:
        if fault := fault_of_digest(request.digest):
            raise InvalidArgument(f"{request.digest}: {fault}")
        await look_up(call, request.digest)
        async with await content.open_blob(namespace_of(call), request.digest) as blob:
            at, end = _range(request, blob.size)
            while at < end:
                data = await blob.pread(at, end - at)
                if not data:
                    break
                await call.send(pb.ReadContentResponse(offset=at, data=data))
                at += len(data)

    async def status(request: pb.StatusRequest, context: Context) -> pb.StatusResponse:
        with said_first(f"could not get status for ref {quoted(request.ref)}"):
            found = await content.status(namespace_of(context), request.ref)
        return pb.StatusResponse(status=status_to(found))

    async def list_statuses(
        request: pb.ListStatusesRequest, context: Context
    ) -> pb.ListStatusesResponse:
        found = await content.list_statuses(namespace_of(context), list(request.filters))
        return pb.ListStatusesResponse(statuses=[status_to(each) for each in found])

    async def abort(request: pb.AbortRequest, context: Context) -> Empty:
        await content.abort(namespace_of(context), request.ref)
        return Empty()

    async def write(call: WriteCall) -> None:
        first = await call.receive()
        if first is None:
            return
        if not first.ref:
            raise InvalidArgument("first message must have a reference")
        await _Writing(content, namespace_of(call), call).run(first)

    return implement(
        pb.DESCRIPTOR.services_by_name["Content"],
        {
            "Info": info,
            "Update": update,
            "List": list_,
            "Delete": delete,
            "Read": read,
            "Status": status,
            "ListStatuses": list_statuses,
            "Write": write,
            "Abort": abort,
        },
    )


class _Writing:
    """One Write stream. Its answer keeps what an earlier message made known."""

    def __init__(self, content: AnyContent, namespace: str, call: WriteCall) -> None:
        self._content = content
        self._call = call
        self._namespace = namespace
        self._lease = call.lease() or ""
        self._total = 0
        self._expected = ""
        self._answer = pb.WriteContentResponse()

    async def run(self, first: pb.WriteContentRequest) -> None:
        self._total, self._expected = first.total, first.expected
        ingest = await self._content.open_ingest(
            self._namespace,
            first.ref,
            total=first.total,
            expected=first.expected,
            lease=self._lease,
        )
        async with ingest:
            request: pb.WriteContentRequest | None = first
            while request is not None:
                self._answer.action = request.action
                await self._take_wishes(ingest, request)
                await self._act(ingest, request)
                await self._call.send(self._answer)
                if request.action == pb.COMMIT:
                    return
                request = await self._call.receive()

    async def _take_wishes(self, ingest: AnyIngest, request: pb.WriteContentRequest) -> None:
        """Digest and size may be told with any message; a later word wins."""
        if request.expected and request.expected != self._expected:
            self._expected = request.expected
            try:
                self._content.info(self._namespace, request.expected)
            except NotFound:
                pass
            else:
                await ingest.close()
                await self._content.abort(self._namespace, ingest.ref)
                raise AlreadyExists(f"blob with expected digest {request.expected} exists")
        if request.total > 0:
            self._total = request.total

    async def _act(self, ingest: AnyIngest, request: pb.WriteContentRequest) -> None:
        answer, data = self._answer, request.data  # a copy each time that it is asked for
        match request.action:
            case pb.STAT:
                await self._take_state(ingest)
                answer.total = self._total
                times = await self._content.status(self._namespace, ingest.ref)
                _stamp(answer, times)
            case pb.WRITE:
                if data or request.offset or (await ingest.state()).offset:
                    await ingest.write(data, request.offset)
                await self._take_state(ingest)
            case pb.COMMIT:
                await self._commit(ingest, request)
            case _:
                answer.offset = (await ingest.state()).offset

    async def _take_state(self, ingest: AnyIngest) -> None:
        state = await ingest.state()
        self._answer.offset, self._answer.digest = state.offset, state.digest

    async def _commit(self, ingest: AnyIngest, request: pb.WriteContentRequest) -> None:
        data = request.data
        if data or request.offset:
            await ingest.write(data, request.offset)
        expected = parse_digest(self._expected) if self._expected else None
        committed = await ingest.commit(
            self._total, expected, dict(request.labels), lease=self._lease
        )
        self._answer.digest, self._answer.offset = committed.digest, committed.size


def _stamp(answer: pb.WriteContentResponse, times: IngestStatus) -> None:
    started, updated = timestamp(times.started_at), timestamp(times.updated_at)
    if started is not None:
        answer.started_at.CopyFrom(started)
    if updated is not None:
        answer.updated_at.CopyFrom(updated)


def _range(request: pb.ReadContentRequest, size: int) -> tuple[int, int]:
    """Where a read begins and ends; containerd's words for a range outside the blob."""
    offset = max(0, request.offset)
    if offset > size:
        raise OutOfRange(f"read past object length {size} bytes")
    end = size if request.size <= 0 else min(size, offset + request.size)
    return offset, end


def info_to(info: ContentInfo) -> pb.Info:
    return pb.Info(
        digest=info.digest,
        size=info.size,
        created_at=timestamp(info.created_at),
        updated_at=timestamp(info.updated_at),
        labels=dict(info.labels),
    )


def status_to(status: IngestStatus) -> pb.Status:
    return pb.Status(
        started_at=timestamp(status.started_at),
        updated_at=timestamp(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )
