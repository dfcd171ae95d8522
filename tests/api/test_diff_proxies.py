"""Differs of other processes: who is asked in which order, what stands, silence."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from holdfast.actors.system import System
from holdfast.api.config import Config, ProxyPlugin
from holdfast.api.grpc.call import Context
from holdfast.api.grpc.server import GrpcServer, listen_unix
from holdfast.api.grpc.service import implement
from holdfast.api.proto.services import diff_pb2 as pb
from holdfast.api.proto.types_pb2 import Descriptor as DescriptorMessage
from holdfast.api.proxies.plugins import differs_of
from holdfast.storage.containers import Opaque
from holdfast.storage.content import ContentStore
from holdfast.storage.descriptor import OCI_LAYER, OCI_LAYER_GZIP, Descriptor, describe
from holdfast.storage.differs import Differs, Wanted
from holdfast.storage.digest import Digest, digest_of
from holdfast.storage.leases import Leases
from holdfast.storage.mounts import Mount
from holdfast.storage.store import Store
from holdfast.storage.workers import Workers

pytestmark = pytest.mark.root

STRANGE = "application/vnd.test.strange"
PACKED = b"what the other side packs"
RAW = b"strange bytes"


class Far:
    """Another process's differ, which knows one media type and notes what it was asked."""

    def __init__(self, content: ContentStore) -> None:
        self.content = content
        self.asked: list[pb.ApplyRequest | pb.DiffRequest] = []
        self.knows = STRANGE
        self.digest = digest_of(b"plain")
        self.writes = True

    async def apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        self._note(request, request.diff.media_type, context)
        target = Path(request.mounts[0].source) / "strange"
        target.write_bytes(await self.content.read_all("ns", request.diff.digest))
        applied = DescriptorMessage(media_type=OCI_LAYER, digest=self.digest, size=5)
        return pb.ApplyResponse(applied=applied)

    async def diff(self, request: pb.DiffRequest, context: Context) -> pb.DiffResponse:
        self._note(request, request.media_type, context)
        if self.writes:
            await self.content.write_blob("ns", request.ref, PACKED)
        made = DescriptorMessage(
            media_type=request.media_type, digest=digest_of(PACKED), size=len(PACKED)
        )
        return pb.DiffResponse(diff=made)

    def _note(
        self, request: pb.ApplyRequest | pb.DiffRequest, media_type: str, context: Context
    ) -> None:
        assert context.namespace() == "ns"
        self.asked.append(request)
        if media_type != self.knows:
            raise Unimplemented(f"unsupported diff media type: {media_type}: not implemented")


class House:
    """Differs over a store, one of another process among them."""

    def __init__(self, tmp: Path, content: ContentStore, far: Far, differs: Differs) -> None:
        self.content, self.far, self.differs = content, far, differs
        self.root = tmp / "root"
        self.root.mkdir()
        self.mounts = [Mount(type="bind", source=str(self.root), options=("rbind", "rw"))]


@asynccontextmanager
async def opened(
    tmp: Path, media_types: Sequence[str] = (), within_s: float = 10.0
) -> AsyncGenerator[House]:
    async with System.open(), Store.open(tmp / "meta.db") as store, trio.open_nursery() as nursery:
        content = await ContentStore.open(tmp / "content", store)
        workers = Workers(1)
        far = Far(content)
        methods = {"Apply": far.apply, "Diff": far.diff}
        served = implement(pb.DESCRIPTOR.services_by_name["Diff"], methods)
        listener = await listen_unix(tmp / "far.sock", 0o600)
        nursery.start_soon(GrpcServer([served]).serve, listener)
        plugins = {
            "far": ProxyPlugin(
                type="diff",
                address=str(tmp / "far.sock"),
                media_types=media_types,
                within_s=within_s,
            ),
        }
        differs = Differs(content, workers, differs_of(Config(proxy_plugins=plugins)))
        try:
            yield House(tmp, content, far, differs)
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await workers.close()


async def brought(house: House, raw: bytes, media_type: str) -> Descriptor:
    await house.content.write_blob("ns", "r", raw)
    return describe(raw, media_type)


async def test_another_is_asked_for_what_ours_refuses(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        layer = await brought(house, RAW, STRANGE)
        payloads = {"key": Opaque(type_url="a.b/C", value=b"1")}
        applied = await house.differs.apply("ns", layer, house.mounts, payloads=payloads)
        assert (applied.digest, applied.size) == (house.far.digest, 5)
        assert (house.root / "strange").read_bytes() == RAW
        [asked] = house.far.asked
        assert isinstance(asked, pb.ApplyRequest)
        assert asked.sync_fs
        assert asked.mounts[0].options == ["rbind", "rw"]
        assert (asked.payloads["key"].type_url, asked.payloads["key"].value) == ("a.b/C", b"1")
        # What ours can do, it does; a refusal of another kind stands.
        empty = await brought(house, bytes(1024), OCI_LAYER)
        assert (await house.differs.apply("ns", empty, house.mounts)).digest == empty.digest
        with pytest.raises(NotFound):
            await house.differs.apply("ns", describe(b"not here", OCI_LAYER), house.mounts)
        broken = await brought(house, b"no tar" * 1000, OCI_LAYER)
        with pytest.raises(InvalidArgument):
            await house.differs.apply("ns", broken, house.mounts)
        assert len(house.far.asked) == 1
        # Nobody can: it is ours that is told.
        other = await brought(house, b"other", "application/vnd.test.other")
        with pytest.raises(Unimplemented, match="no processor for media-type"):
            await house.differs.apply("ns", other, house.mounts)
        assert len(house.far.asked) == 2


async def test_another_is_asked_first_for_what_is_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path, [OCI_LAYER, OCI_LAYER_GZIP]) as house:
        house.far.knows = OCI_LAYER
        layer = await brought(house, RAW, OCI_LAYER)
        assert (await house.differs.apply("ns", layer, house.mounts)).digest == house.far.digest
        # It may leave it to the next: gzip is what is packed where nothing is said.
        made = await house.differs.diff("ns", [], house.mounts, Wanted())
        assert made.media_type == OCI_LAYER_GZIP
        assert made.digest != digest_of(PACKED)
        assert len(house.far.asked) == 2
        strange = await brought(house, RAW, STRANGE)
        with pytest.raises(Unimplemented):
            await house.differs.apply("ns", strange, house.mounts)
        house.far.digest = Digest("nonsense")
        with pytest.raises(InvalidArgument, match="answer of proxy plugin far"):
            await house.differs.apply("ns", layer, house.mounts)


async def test_nobody_is_asked_twice(tmp_path: Path) -> None:
    async with opened(tmp_path, [STRANGE]) as house:
        house.far.knows = "nothing"
        layer = await brought(house, RAW, STRANGE)
        with pytest.raises(Unimplemented, match="no processor for media-type"):
            await house.differs.apply("ns", layer, house.mounts)
        assert len(house.far.asked) == 1


async def test_what_another_packs_must_be_in_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as house:
        leases = Leases(house.content.store)
        await leases.create("ns", "held")
        wanted = Wanted(media_type=STRANGE, ref="r", labels={"a": "b"}, epoch_ns=0)
        house.far.writes = False
        with pytest.raises(FailedPrecondition, match="not in the content store"):
            await house.differs.diff("ns", house.mounts, house.mounts, wanted, lease="held")
        house.far.writes = True
        made = await house.differs.diff("ns", house.mounts, house.mounts, wanted, lease="held")
        assert made == describe(PACKED, STRANGE)
        assert house.content.info("ns", made.digest).labels == {"a": "b"}
        assert [one.id for one in leases.list_resources("ns", "held")] == [made.digest]
        asked = house.far.asked[-1]
        assert isinstance(asked, pb.DiffRequest)
        assert asked.HasField("source_date_epoch")
        assert asked.source_date_epoch.seconds == 0


async def test_one_that_is_silent_is_told_and_harms_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path, within_s=0.2) as house:

        async def hang(request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
            await trio.sleep_forever()
            raise AssertionError

        methods = {"Apply": hang}
        async with trio.open_nursery() as nursery:
            (tmp_path / "far.sock").unlink()
            listener = await listen_unix(tmp_path / "far.sock", 0o600)
            served = implement(pb.DESCRIPTOR.services_by_name["Diff"], methods)
            nursery.start_soon(GrpcServer([served]).serve, listener)
            layer = await brought(house, RAW, STRANGE)
            for _ in range(3):
                with pytest.raises(DeadlineExceeded):
                    await house.differs.apply("ns", layer, house.mounts)
            with trio.fail_after(0.2), pytest.raises(Unavailable, match="asked again in"):
                await house.differs.apply("ns", layer, house.mounts)
            empty = await brought(house, bytes(1024), OCI_LAYER)
            assert (await house.differs.apply("ns", empty, house.mounts)).digest == empty.digest
            nursery.cancel_scope.cancel()
