"""Content of another process: what is believed, what is not, silence, and many who ask at once."""

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.actors.errors import AlreadyExists, NotFound
from holdfast.actors.system import System
from holdfast.api.config import Config, ProxyPlugin
from holdfast.api.grpc.client import Channel
from holdfast.api.grpc.server import GrpcServer, listen_unix
from holdfast.api.proto.services import content_pb2 as pb
from holdfast.api.proxies.plugins import sources_of
from holdfast.api.services import content as service
from holdfast.storage.blobfiles import Blob
from holdfast.storage.collector import Collector
from holdfast.storage.content import ContentStore
from holdfast.storage.digest import digest_of
from holdfast.storage.leases import Leases
from holdfast.storage.lentcontent import LentContent
from holdfast.storage.lentsnapshots import NAMESPACE
from holdfast.storage.sourcedcontent import PIECE_BYTES, SourcedContent
from holdfast.storage.store import Store

A = TypeVar("A", bound=Message)

SERVICE = "/containerd.services.content.v1.Content"
HELLO = b"hello" * 100
DIGEST = digest_of(HELLO)
LARGE = os.urandom(1 << 20) * 9  # three pieces


class Counting(ContentStore):
    """A store that counts how often it is read, and may be told to wait before it answers."""

    reads = 0
    gate: trio.Event | None = None

    async def open_blob(self, namespace: str, digest: str) -> Blob:
        self.reads += 1
        if self.gate is not None:
            await self.gate.wait()
        return await super().open_blob(namespace, digest)


@asynccontextmanager
async def served(content: ContentStore | LentContent, path: Path) -> AsyncGenerator[None]:
    if isinstance(content, LentContent):
        offered = service.lent(content)
    else:
        offered = service.service(content)
    async with trio.open_nursery() as nursery:
        listener = await listen_unix(path, 0o600)
        nursery.start_soon(GrpcServer([offered]).serve, listener)
        yield
        nursery.cancel_scope.cancel()
    path.unlink(missing_ok=True)


@asynccontextmanager
async def lender(tmp: Path) -> AsyncGenerator[Counting]:
    """A process's content, served on a socket."""
    async with Store.open(tmp / "lender.db") as store:
        content = await Counting.open(tmp / "lender", store)
        assert isinstance(content, Counting)
        async with served(content, tmp / "far.sock"):
            yield content


@asynccontextmanager
async def borrower(tmp: Path, within_s: float = 5.0) -> AsyncGenerator[SourcedContent]:
    """A store that has the lender as its source."""
    far = ProxyPlugin(type="content", address=str(tmp / "far.sock"), within_s=within_s)
    async with Store.open(tmp / "near.db") as store:
        content = await SourcedContent.open(tmp / "near", store)
        assert isinstance(content, SourcedContent)
        content.sources = sources_of(Config(proxy_plugins={"far": far}))
        yield content


def blobs(tmp: Path) -> list[Path]:
    return [path for path in (tmp / "near/blobs").rglob("*") if path.is_file()]


def spoil(content: ContentStore, digest: str, raw: bytes) -> None:
    path = content.blob_path(digest)
    path.unlink()
    path.write_bytes(raw)


async def test_what_only_the_other_side_has_is_here_once_it_is_asked_for(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        other = digest_of(b"layer")
        labels = {
            "containerd.io/gc.ref.content.0": other,
            "containerd.io/gc.ref.content.1": "none",
            "containerd.io/uncompressed": other,
            "a": "b",
        }
        await far.write_blob("ns", "r", HELLO, labels=labels)
        await far.write_blob("ns", "large", LARGE)
        await far.write_blob("ns", "empty", b"")
        async with served(near, tmp_path / "near.sock"):
            ask = partial(call, tmp_path / "near.sock")
            told = await ask("Info", pb.InfoRequest(digest=DIGEST), pb.InfoResponse)
            assert (told.info.digest, told.info.size) == (DIGEST, len(HELLO))
            # What it refers to is a fact of the collector's; all else is somebody's word.
            assert dict(told.info.labels) == {"containerd.io/gc.ref.content.0": other}
            assert await near.read_all("ns", digest_of(LARGE), 16 << 20) == LARGE
            assert await near.read_all("ns", digest_of(b"")) == b""
            wanted = pb.InfoRequest(digest=digest_of(b"never"))
            with pytest.raises(NotFound):
                await ask("Info", wanted, pb.InfoResponse)
            wanted = pb.InfoRequest(digest=DIGEST)
            with pytest.raises(NotFound):
                await ask("Info", wanted, pb.InfoResponse, "elsewhere")
        assert len(blobs(tmp_path)) == 3
        assert await near.list_statuses("ns") == []


async def test_a_write_of_what_the_other_side_has_need_not_be_made(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        await far.write_blob("ns", "r", HELLO)
        leases = Leases(near.store)
        await leases.create("ns", "held")
        with pytest.raises(AlreadyExists, match="already exists"):
            await near.open_ingest("ns", "w", total=len(HELLO), expected=DIGEST, lease="held")
        collector = Collector(near.store, {"content": near.reclaim})
        await collector.collect()
        assert near.info("ns", DIGEST).size == len(HELLO)
        await leases.delete("ns", "held")
        await collector.collect()
        with pytest.raises(NotFound):
            near.info("ns", DIGEST)
        # It was garbage like any other, and is there again for the asking, held while that lasts.
        await leases.create("ns", "again")
        assert await near.obtain("ns", DIGEST, lease="again")
        await collector.collect()
        assert near.info("ns", DIGEST).size == len(HELLO)


async def test_many_who_ask_at_once_fetch_once(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        await far.write_blob("ns", "r", HELLO)
        far.gate = trio.Event()
        found: list[bytes] = []

        async def ask() -> None:
            found.append(await near.read_all("ns", DIGEST))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(ask)
                while not far.reads:
                    await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked(0.05)
                far.gate.set()
        assert found == [HELLO] * 50
        assert far.reads == 1


async def test_who_waits_goes_on_where_one_that_went_away_had_come_to(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        digest = await far.write_blob("ns", "large", LARGE)
        found: list[bool] = []

        async def wait() -> None:
            found.append(await near.obtain("ns", digest))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as first:

                    async def leave() -> None:
                        while not far.reads:
                            await trio.sleep(0.001)
                        far.gate = trio.Event()  # the next piece is slow
                        while far.reads < 2:
                            await trio.sleep(0.001)
                        nursery.start_soon(wait)
                        await trio.testing.wait_all_tasks_blocked(0.01)
                        first.cancel()
                        far.gate.set()

                    nursery.start_soon(leave)
                    await near.obtain("ns", digest)
                assert first.cancelled_caught
        assert found == [True]
        # Two pieces were asked for before, the second twice, the last one once.
        assert far.reads == 4
        assert PIECE_BYTES * 2 < len(LARGE) < PIECE_BYTES * 3


@pytest.mark.parametrize(
    "wrong", [HELLO[:-1] + b"!", HELLO[:-1], b""], ids=["changed", "short", "empty"]
)
async def test_what_does_not_verify_is_not_there(tmp_path: Path, wrong: bytes) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        await far.write_blob("ns", "r", HELLO)
        spoil(far, DIGEST, wrong)
        for _ in range(2):
            with pytest.raises(NotFound):
                await near.open_blob("ns", DIGEST)
        assert blobs(tmp_path) == []
        assert await near.list_statuses("ns") == []
        # What is had in another way is no worse for it.
        await near.write_blob("ns", "own", HELLO)
        spoil(far, DIGEST, HELLO)
        assert await near.read_all("ns", DIGEST) == HELLO


async def test_a_file_that_is_lost_is_brought_again(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        await far.write_blob("ns", "r", HELLO)
        assert await near.obtain("ns", DIGEST)
        near.blob_path(DIGEST).unlink()
        assert await near.read_all("ns", DIGEST) == HELLO
        assert far.reads == 2


async def test_a_source_that_hangs_costs_its_deadline_and_then_nothing(tmp_path: Path) -> None:
    async with System.open(), borrower(tmp_path, within_s=0.3) as near:
        async with trio.open_nursery() as nursery:
            listener = await listen_unix(tmp_path / "far.sock", 0o600)

            async def swallow(stream: trio.SocketStream) -> None:
                async with stream:
                    async for _ in stream:
                        pass

            nursery.start_soon(trio.serve_listeners, swallow, [listener])
            began_s = trio.current_time()
            assert not await near.obtain("ns", DIGEST)
            assert 0.3 <= trio.current_time() - began_s < 0.9
            began_s = trio.current_time()
            for _ in range(20):
                with pytest.raises(NotFound):
                    await near.open_blob("ns", DIGEST)
            await near.write_blob("ns", "own", b"own")
            assert trio.current_time() - began_s < 0.3
            nursery.cancel_scope.cancel()
        (tmp_path / "far.sock").unlink(missing_ok=True)
        async with lender(tmp_path) as far:
            await far.write_blob("ns", "r", HELLO)
            with trio.fail_after(10):
                while not await near.obtain("ns", DIGEST):
                    await trio.sleep(0.05)


async def test_a_source_that_dies_midway_is_gone_on_with_later(tmp_path: Path) -> None:
    async with System.open(), borrower(tmp_path) as near:
        async with lender(tmp_path) as far:
            digest = await far.write_blob("ns", "large", LARGE)
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:

                    async def die() -> None:
                        while far.reads < 2:
                            await trio.sleep(0.001)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(die)
                    far.gate = None
                    await near.obtain("ns", digest)
        assert not await near.obtain("ns", digest)
        assert blobs(tmp_path) == []
        [cut] = await near.list_statuses("ns")
        assert 0 < cut.offset < len(LARGE)
        async with lender(tmp_path) as far:
            with trio.fail_after(20):
                while not await near.obtain("ns", digest):
                    await trio.sleep(0.05)
            assert far.reads < 3
        assert await near.read_all("ns", digest, 16 << 20) == LARGE


async def test_two_that_are_each_others_source_do_not_wait_for_one_another(tmp_path: Path) -> None:
    async with System.open(), Store.open(tmp_path / "one.db") as store:
        one = await SourcedContent.open(tmp_path / "one", store)
        assert isinstance(one, SourcedContent)
        two = ProxyPlugin(type="content", address=str(tmp_path / "two.sock"), within_s=5.0)
        one.sources = sources_of(Config(proxy_plugins={"two": two}))
        async with borrower(tmp_path) as near:
            async with served(one, tmp_path / "far.sock"), served(near, tmp_path / "two.sock"):
                with trio.fail_after(2):
                    assert not await one.obtain("ns", DIGEST)
                    assert not await near.obtain("ns", DIGEST)
                    await one.write_blob("ns", "r", HELLO)
                    assert await near.obtain("ns", DIGEST)


async def test_what_is_lent_is_kept_until_the_borrower_removes_it(tmp_path: Path) -> None:
    async with System.open(), lender(tmp_path) as far, borrower(tmp_path) as near:
        await far.write_blob(NAMESPACE, "r", b"not lent further")
        async with served(LentContent(near), tmp_path / "lent.sock"):
            ask = partial(call, tmp_path / "lent.sock", namespace="")
            await write(tmp_path / "lent.sock", "1/a/ref", HELLO, {"a": "b"})
            await write(tmp_path / "lent.sock", "2/b/ref", b"")
            await Collector(near.store, {"content": near.reclaim}).collect()
            told = await ask("Info", pb.InfoRequest(digest=DIGEST), pb.InfoResponse)
            assert dict(told.info.labels) == {"a": "b"}
            update = pb.UpdateRequest(info=pb.Info(digest=DIGEST, labels={"c": "d"}))
            changed = await ask("Update", update, pb.UpdateResponse)
            assert dict(changed.info.labels) == {"c": "d"}
            await Collector(near.store, {"content": near.reclaim}).collect()
            assert await near.read_all(NAMESPACE, DIGEST) == HELLO
            with pytest.raises(AlreadyExists):
                await write(tmp_path / "lent.sock", "3/a/ref", HELLO)
            # Its own source is no source of what it lends.
            wanted = pb.InfoRequest(digest=digest_of(b"not lent further"))
            with pytest.raises(NotFound):
                await ask("Info", wanted, pb.InfoResponse)
            with pytest.raises(NotFound):
                await near.open_blob(NAMESPACE, wanted.digest)
            await ask("Delete", pb.DeleteContentRequest(digest=DIGEST), Empty)
            assert [info.size for info in near.list(NAMESPACE)] == [0]


async def write(path: Path, ref: str, raw: bytes, labels: Mapping[str, str] | None = None) -> None:
    """As containerd's metadata store does it: what is expected, it tells last."""
    async with (
        Channel.connect(path) as channel,
        channel.stream(f"{SERVICE}/Write", pb.WriteContentResponse, {}, 10.0) as stream,
    ):
        await stream.send(pb.WriteContentRequest(action=pb.STAT, ref=ref, total=len(raw)))
        assert await stream.receive() is not None
        await stream.send(pb.WriteContentRequest(action=pb.WRITE, ref=ref, data=raw))
        assert await stream.receive() is not None
        await stream.send(
            pb.WriteContentRequest(
                action=pb.COMMIT,
                ref=ref,
                total=len(raw),
                offset=len(raw),
                expected=digest_of(raw),
                labels=labels,
            )
        )
        answer = await stream.receive()
        assert answer is not None
        assert answer.digest == digest_of(raw)


async def call(
    path: Path, method: str, request: Message, answer: type[A], namespace: str = "ns"
) -> A:
    metadata = {"containerd-namespace": namespace} if namespace else {}
    async with Channel.connect(path) as channel:
        return await channel.unary(f"{SERVICE}/{method}", request, answer, metadata, timeout_s=10)
