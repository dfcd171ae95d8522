import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.actors.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    Unavailable,
)
from holdfast.actors.exits import KILL
from holdfast.actors.system import System
from holdfast.storage import ingest as ingest_module
from holdfast.storage.collector import Collector
from holdfast.storage.content import SHAREABLE_LABEL, ContentStore
from holdfast.storage.digest import digest_of
from holdfast.storage.leases import Leases
from holdfast.storage.namespaces import Namespaces
from holdfast.storage.store import Store, Transaction
from holdfast.storage.sweep import Garbage

HELLO = b"hello" * 1000
HELLO_DIGEST = digest_of(HELLO)
LARGE = os.urandom(3 << 20)


@asynccontextmanager
async def opened(root: Path) -> AsyncGenerator[tuple[ContentStore, Store], None]:
    async with System.open(), Store.open(root / "meta.db") as store:
        yield await ContentStore.open(root / "content", store), store


async def put(content: ContentStore, ns: str, raw: bytes, **labels: str) -> str:
    async with await content.open_ingest(ns, f"ref-{digest_of(raw)}") as ingest:
        await ingest.write(raw)
        done = await ingest.commit(len(raw), digest_of(raw), labels)
    return done.digest


async def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, store):
        async with await content.open_ingest("ns", "r", total=len(LARGE)) as ingest:
            assert await ingest.write(LARGE[:100], 0) == 100
            assert await ingest.write(LARGE[100 : 1 << 20], 100) == 1 << 20
            state = await ingest.state()
            assert state.digest == digest_of(LARGE[: 1 << 20])
            assert await ingest.write(LARGE[1 << 20 :]) == len(LARGE)
            done = await ingest.commit(len(LARGE), digest_of(LARGE), {"a": "b", "empty": ""})
        assert (done.digest, done.size) == (digest_of(LARGE), len(LARGE))
        info = content.info("ns", done.digest)
        assert info.size == len(LARGE)
        assert info.labels == {"a": "b"}
        assert b"".join([p async for _, p in content.read("ns", done.digest)]) == LARGE
        part = [p async for _, p in content.read("ns", done.digest, 5, 10)]
        assert b"".join(part) == LARGE[5:15]
        tail = [p async for _, p in content.read("ns", done.digest, len(LARGE) - 3, 100)]
        assert b"".join(tail) == LARGE[-3:]
        with pytest.raises(OutOfRange, match="read past object length"):
            _ = [p async for _, p in content.read("ns", done.digest, len(LARGE) + 1)]
        await content.verify("ns", done.digest)
        assert not list((tmp_path / "content" / "ingest").iterdir())
        assert await content.list_statuses("ns") == []
        topics = [row async for row in _events(store)]
        assert topics == [("/content/create", {"digest": done.digest, "size": len(LARGE)})]
        path = content.blob_path(done.digest)
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.stat().st_nlink == 1


async def _events(store: Store) -> AsyncGenerator[tuple[str, object], None]:
    import sqlite3

    import cbor2

    with sqlite3.connect(store.path) as connection:
        for topic, payload in connection.execute("SELECT topic, payload FROM event ORDER BY seq"):
            yield topic, cbor2.loads(payload)
    connection.close()


async def test_another_digest_or_size_is_refused_and_the_ingest_stays_open(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r") as ingest:
            await ingest.write(HELLO)
            other = digest_of(b"other")
            with pytest.raises(FailedPrecondition) as refused:
                await ingest.commit(0, other)
            assert str(refused.value) == (
                f"unexpected commit digest {HELLO_DIGEST}, expected {other}: failed precondition"
            )
            with pytest.raises(FailedPrecondition, match="" r" failed size validation: 5000 != 7"):
                await ingest.commit(7)
            await ingest.truncate()
            await ingest.write(b"other")
            await ingest.commit(5, other)
        assert content.info("ns", other).size == 5
        with pytest.raises(NotFound, match=f"content digest {HELLO_DIGEST}: not found"):
            content.info("ns", HELLO_DIGEST)


async def test_a_ref_is_open_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.storage.refholds.LOCK_WAIT_S", 0.01)
    async with opened(tmp_path) as (content, _):
        results: list[str] = []

        async def write(n: int) -> None:
            try:
                async with await content.open_ingest("ns", "r") as ingest:
                    await ingest.write(b"%d" % n)
                    await trio.sleep(0.1)
                results.append("wrote")
            except Unavailable as error:
                results.append(str(error))

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(write, n)
        assert results.count("wrote") == 1
        refused = [text for text in results if text != "wrote"]
        assert len(refused) == 4
        assert all(text.startswith("ref ns/r locked for 0.") for text in refused)
        assert all(text.endswith(" UTC): unavailable") for text in refused)
        async with await content.open_ingest("other", "r"):
            async with await content.open_ingest("ns", "r") as again:
                assert (await again.state()).offset == 1


async def test_a_killed_ingest_releases_its_ref(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        ingest = await content.open_ingest("ns", "r")
        await ingest.write(b"abc")
        ingest._actor.exit(KILL)
        with pytest.raises(FailedPrecondition, match="closed writer"):
            await ingest.write(b"d")
        await ingest.close()
        async with await content.open_ingest("ns", "r") as again:
            assert (await again.state()).offset == 3
            with pytest.raises(OutOfRange, match="write @7 must occur at current offset 3"):
                await again.write(b"x", 7)
            assert await again.write(b"from the start", 0) == 14


async def test_writing_resumes_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r", total=len(LARGE)) as ingest:
            await ingest.write(LARGE[:1000000])
    async with opened(tmp_path) as (content, _):
        status = await content.status("ns", "r")
        assert (status.offset, status.total) == (1000000, len(LARGE))
        assert status.started_at <= status.updated_at
        async with await content.open_ingest("ns", "r", total=len(LARGE)) as ingest:
            await ingest.write(LARGE[1000000:], 1000000)
            await ingest.commit(len(LARGE), digest_of(LARGE))
        await content.verify("ns", digest_of(LARGE))


async def test_an_ingest_of_a_job_does_not_outlive_its_daemon(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "job", job=True) as job:
            await job.write(b"x" * 100)
        async with await content.open_ingest("ns", "client's") as ingest:
            await ingest.write(b"y" * 100)
    async with opened(tmp_path) as (content, _):
        await content.end_jobs()
        assert [one.ref for one in await content.list_statuses("ns")] == ["client's"]
        assert len(list((tmp_path / "content/ingest").iterdir())) == 1


async def test_another_total_begins_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r", total=10) as ingest:
            await ingest.write(b"abc")
        async with await content.open_ingest("ns", "r", total=11) as ingest:
            assert (await ingest.state()).offset == 0


CHILD = """
    import os, sys
    from pathlib import Path
    import trio
    from holdfast.actors.system import System
    from holdfast.storage.content import ContentStore
    from holdfast.storage.store import Store

    async def main():
        root = Path(sys.argv[1])
        async with System.open(), Store.open(root / "meta.db") as store:
            content = await ContentStore.open(root / "content", store)
            ingest = await content.open_ingest("ns", "r")
            while True:
                offset = await ingest.write(b"x" * 40000)
                offset = await ingest.write(b"y" * 100)
                os.write(1, b"%d\\n" % offset)

    trio.run(main)
"""


@pytest.mark.parametrize("lines", [1, 40])
async def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path, lines: int) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None

    def watch() -> int:
        assert child.stdout is not None
        with child, child.stdout:
            last = 0
            for _ in range(lines):
                last = int(child.stdout.readline())
            child.send_signal(signal.SIGKILL)
            for line in child.stdout.read().split(b"\n")[:-1]:
                last = int(line)
        return last

    acknowledged = await trio.to_thread.run_sync(watch)
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r") as ingest:
            offset = (await ingest.state()).offset
            assert offset >= acknowledged
            whole = b"".join([b"x" * 40000 + b"y" * 100] * (offset // 40000 + 1))[:offset]
            await ingest.commit(offset, digest_of(whole))


async def test_a_blob_of_another_namespace_is_taken_over_without_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        await put(content, "one", HELLO)
        async with await content.open_ingest("two", "r", expected=HELLO_DIGEST) as ingest:
            state = await ingest.state()
            assert (state.offset, state.digest) == (len(HELLO), HELLO_DIGEST)
            assert (await content.status("two", "r")).offset == len(HELLO)
            await ingest.commit(len(HELLO), HELLO_DIGEST, {"l": "two"})
        assert content.info("two", HELLO_DIGEST).labels == {"l": "two"}
        assert content.info("one", HELLO_DIGEST).labels == {}
        with pytest.raises(AlreadyExists, match="already exists"):
            await content.open_ingest("two", "r2", expected=HELLO_DIGEST)
        await content.delete("one", HELLO_DIGEST)
        assert await content.read_all("two", HELLO_DIGEST) == HELLO
        await content.delete("two", HELLO_DIGEST)
        assert not content.blob_path(HELLO_DIGEST).exists()
        with pytest.raises(NotFound):
            await content.delete("two", HELLO_DIGEST)


async def test_an_isolated_namespace_takes_over_only_what_is_shareable(tmp_path: Path) -> None:
    async with System.open(), Store.open(tmp_path / "meta.db") as store:
        content = await ContentStore.open(tmp_path / "content", store, isolated=True)
        namespaces = Namespaces(store)
        await put(content, "ns", HELLO)
        async with await content.open_ingest("other", "r", expected=HELLO_DIGEST) as ingest:
            assert (await ingest.state()).offset == 0
        await namespaces.update("ns", {SHAREABLE_LABEL: "yes"})
        async with await content.open_ingest("other", "s", expected=HELLO_DIGEST) as ingest:
            assert (await ingest.state()).offset == 0
        await namespaces.update("ns", {SHAREABLE_LABEL: "true"})
        async with await content.open_ingest("other", "t", expected=HELLO_DIGEST) as ingest:
            assert (await ingest.state()).offset == len(HELLO)
            await ingest.commit(len(HELLO), HELLO_DIGEST)
        # Each has a record of its own; the bytes go with the last.
        await content.delete("ns", HELLO_DIGEST)
        await content.verify("other", HELLO_DIGEST)
        await content.delete("other", HELLO_DIGEST)
        assert not content.blob_path(HELLO_DIGEST).exists()


async def test_a_blob_collected_since_it_was_looked_at_is_written_anew(tmp_path: Path) -> None:
    """Between the look at the read models and the lease's write the collector removed it."""
    async with opened(tmp_path) as (content, store):
        await put(content, "ns", HELLO)
        await Leases(store).create("ns", "lease")
        gate, begun = threading.Event(), threading.Event()

        def remove(tx: Transaction) -> None:
            begun.set()
            gate.wait(5)
            tx.delete("content", "ns", HELLO_DIGEST)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.write, remove)
            await trio.to_thread.run_sync(begun.wait, 5)

            async def write() -> None:
                expected = HELLO_DIGEST
                async with await content.open_ingest(
                    "ns", "again", expected=expected, lease="lease"
                ) as ingest:
                    await ingest.write(HELLO)
                    await ingest.commit(len(HELLO), expected, lease="lease")

            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        await content.verify("ns", HELLO_DIGEST)
        (held,) = Leases(store).list_resources("ns", "lease")
        assert held.id == HELLO_DIGEST


async def test_a_shared_ingest_becomes_one_of_its_own_when_written(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        await put(content, "one", HELLO)
        async with await content.open_ingest("two", "r", expected=HELLO_DIGEST) as ingest:
            assert await ingest.write(b"more") == len(HELLO) + 4
            await ingest.commit(0, digest_of(HELLO + b"more"))
        async with await content.open_ingest("two", "r", expected=HELLO_DIGEST) as ingest:
            assert await ingest.write(b"anew", 0) == 4
            await ingest.commit()
        assert await content.read_all("two", digest_of(b"anew")) == b"anew"
        assert await content.read_all("one", HELLO_DIGEST) == HELLO
        for total in (1, -1):
            other_size = await content.open_ingest("two", "q", expected=HELLO_DIGEST, total=total)
            async with other_size as ingest:
                assert (await ingest.state()).offset == 0


async def test_a_shared_blob_may_go_away_before_the_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        await put(content, "one", HELLO)
        async with await content.open_ingest("two", "r", expected=HELLO_DIGEST) as ingest:
            await content.delete("one", HELLO_DIGEST)
            with pytest.raises(Unavailable, match="went away"):
                await ingest.commit(0, HELLO_DIGEST)
            await ingest.write(HELLO, 0)
            await ingest.commit(0, HELLO_DIGEST)
        await content.verify("two", HELLO_DIGEST)


async def test_two_who_write_the_same_blob_both_have_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        first = await content.open_ingest("ns", "a")
        second = await content.open_ingest("ns", "b")
        for ingest in (first, second):
            await ingest.write(HELLO)
        await first.commit(0, HELLO_DIGEST)
        with pytest.raises(AlreadyExists, match=f"content {HELLO_DIGEST}: already exists"):
            await second.commit(0, HELLO_DIGEST)
        await second.close()
        assert await content.list_statuses("ns") == []
        assert not list((tmp_path / "content" / "ingest").iterdir())


async def test_labels_change_by_field_paths(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        digest = await put(content, "ns", HELLO, a="1", b="2")
        info = await content.update("ns", digest, {"a": "", "c": "3"}, ["labels.a", "labels.c"])
        assert info.labels == {"b": "2", "c": "3"}
        info = await content.update("ns", digest, {"x": "y"})
        assert content.info("ns", digest) == info
        assert info.labels == {"x": "y"}
        with pytest.raises(InvalidArgument, match='cannot update "size" field'):
            await content.update("ns", digest, {}, ["size"])
        with pytest.raises(NotFound):
            await content.update("ns", digest_of(b"none"), {})
        with pytest.raises(InvalidArgument, match="failed validation"):
            content.info("ns", "sha256:zz")
        with pytest.raises(FailedPrecondition, match="namespace is required"):
            content.info("", digest)


async def test_lists_are_filtered(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        one = await put(content, "ns", b"one", kind="a")
        two = await put(content, "ns", b"two", kind="b")
        await put(content, "other", b"three")
        assert {info.digest for info in content.list("ns")} == {one, two}
        assert [info.digest for info in content.list("ns", ["labels.kind==b"])] == [two]
        assert [info.digest for info in content.list("ns", [f"digest=={one}"])] == [one]
        assert content.list("ns", ["size==3"]) == []
        for ref in ("x", "y"):
            await (await content.open_ingest("ns", ref)).close()
        assert [s.ref for s in await content.list_statuses("ns", ["ref==y"])] == ["y"]
        assert await content.list_statuses("ns", ["nothing==y"]) == []


async def test_an_aborted_ingest_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        ingest = await content.open_ingest("ns", "r")
        await ingest.write(HELLO)
        await content.abort("ns", "r")
        with pytest.raises(FailedPrecondition):
            await ingest.write(b"x")
        await ingest.abort()
        with pytest.raises(NotFound, match="reference r: not found"):
            await content.abort("ns", "r")
        with pytest.raises(NotFound, match="reference r: not found"):
            await content.status("ns", "r")
        closed = await content.open_ingest("ns", "r")
        await closed.close()
        await content.abort("ns", "r")
        assert not list((tmp_path / "content" / "ingest").iterdir())


async def test_refs_and_digests_are_checked(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        for ref in ("", "x" * 5000, "a\0b"):
            with pytest.raises(InvalidArgument):
                await content.open_ingest("ns", ref)
        with pytest.raises(InvalidArgument):
            await content.open_ingest("ns", "r", expected="sha256:../../../etc/passwd")
        async with await content.open_ingest("ns", "../../../../tmp/evil") as ingest:
            await ingest.write(b"x")
        assert len(list((tmp_path / "content" / "ingest").iterdir())) == 1


async def test_sha512_is_hashed_when_expected(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        expected = digest_of(HELLO, "sha512")
        async with await content.open_ingest("ns", "r", expected=expected) as ingest:
            await ingest.write(HELLO)
            await ingest.commit(0, expected)
        async with await content.open_ingest("ns", "late") as ingest:
            await ingest.write(LARGE)
            await ingest.commit(0, digest_of(LARGE, "sha512"))
        await content.verify("ns", expected)
        assert await content.read_all("ns", expected) == HELLO


async def test_a_full_disk_is_a_refusal_and_keeps_the_offset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r") as ingest:
            await ingest.write(b"abc")

            def full(*_: object) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(ingest_module.os, "pwrite", full)
                with pytest.raises(ResourceExhausted, match="No space left"):
                    await ingest.write(HELLO)
            assert await ingest.write(b"def", 3) == 6
            await ingest.commit(6, digest_of(b"abcdef"))


async def test_a_damaged_or_lost_blob_is_told_and_may_be_written_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        digest = await put(content, "ns", HELLO, kept="yes")
        path = content.blob_path(digest)
        path.chmod(0o600)
        path.write_bytes(b"j" + HELLO[1:])
        with pytest.raises(DataLoss, match="does not verify"):
            await content.verify("ns", digest)
        with pytest.raises(DataLoss, match="does not verify"):
            await content.read_all("ns", digest)
        path.write_bytes(b"short")
        with pytest.raises(DataLoss, match="ends at 5"):
            _ = [p async for _, p in content.read("ns", digest)]
        path.unlink()
        with pytest.raises(DataLoss, match="no file"):
            await content.open_blob("ns", digest)
        async with await content.open_ingest("ns", "r", expected=digest) as ingest:
            await ingest.write(HELLO)
            with pytest.raises(AlreadyExists):
                await ingest.commit(0, digest)
        await content.verify("ns", digest)
        assert content.info("ns", digest).labels == {"kept": "yes"}


async def test_a_file_that_is_not_its_name_is_replaced(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        content.blob_path(HELLO_DIGEST).write_bytes(b"not it")
        await put(content, "ns", HELLO)
        await content.verify("ns", HELLO_DIGEST)


async def test_orphans_are_removed_at_the_start(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        await put(content, "ns", HELLO)
        orphan = content.blob_path(digest_of(b"orphan"))
        orphan.write_bytes(b"orphan")
        (tmp_path / "content" / "ingest" / "stray").mkdir()
        kept = await content.open_ingest("ns", "kept")
        await kept.close()
    async with opened(tmp_path) as (content, _):
        assert not orphan.exists()
        assert content.blob_path(HELLO_DIGEST).exists()
        assert len(list((tmp_path / "content" / "ingest").iterdir())) == 1


async def test_another_database_does_not_empty_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        one = content.blob_path(await put(content, "ns", b"1"))
        two = content.blob_path(await put(content, "ns", b"2"))
    for path in tmp_path.glob("meta.db*"):
        path.unlink()
    async with opened(tmp_path):
        assert one.exists()
        assert two.exists()


async def test_an_ingest_cut_off_at_its_commit_does_not_write_into_the_blob(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r") as ingest:
            await ingest.write(HELLO)
        (data,) = (tmp_path / "content" / "ingest").glob("*/data")
        blob = content.blob_path(HELLO_DIGEST)
        os.link(data, blob)
        async with await content.open_ingest("ns", "r") as ingest:
            await ingest.write(b"more")
        assert blob.read_bytes() == HELLO


async def test_a_commit_without_record_leaves_no_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        async with await content.open_ingest("ns", "r") as ingest:
            await ingest.write(HELLO)
            with pytest.raises(NotFound, match="lease does not exist"):
                await ingest.commit(0, HELLO_DIGEST, lease="none")
            assert not content.blob_path(HELLO_DIGEST).exists()
            assert await ingest.write(b"!") == len(HELLO) + 1
            await ingest.commit()


async def test_what_a_collection_forgot_is_reclaimed(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, store):
        digest = await put(content, "ns", HELLO)
        blob = Garbage(kind="content", namespace="ns", key=digest, record={})
        await content.reclaim(blob)
        assert content.blob_path(digest).exists()
        await store.write(lambda tx: tx.delete("content", "ns", digest))
        await content.reclaim(blob)
        assert not content.blob_path(digest).exists()

        ingest = await content.open_ingest("ns", "r")
        await store.write(lambda tx: tx.delete("ingest", "ns", "r"))
        stray = Garbage(kind="ingest", namespace="ns", key="r", record={})
        await content.reclaim(stray)
        await ingest.write(b"still mine")
        await ingest.close()
        await content.reclaim(stray)
        assert not list((tmp_path / "content" / "ingest").iterdir())
        await content.reclaim(Garbage(kind="image", namespace="ns", key="r", record={}))


async def test_small_blobs_are_written_in_one_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, _):
        digest = await content.write_blob("ns", "r", b"{}", labels={"a": "1"})
        assert await content.write_blob("ns", "r", b"{}", labels={"b": "2"}) == digest
        assert content.info("ns", digest).labels == {"a": "1", "b": "2"}
        assert await content.write_blob("other", "r", b"{}") == digest
        with pytest.raises(ResourceExhausted):
            await content.read_all("ns", digest, bytes_max=1)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.binary(max_size=200) | st.integers(30_000, 40_000), max_size=12), st.data())
def test_pieces_hash_like_the_whole(
    tmp_path: Path, drawn: list[bytes | int], data: st.DataObject
) -> None:
    pieces = [one if isinstance(one, bytes) else b"z" * one for one in drawn]
    reopen_at = data.draw(st.integers(0, len(pieces)))
    whole = b"".join(pieces)

    async def run() -> None:
        async with opened(tmp_path) as (content, _):
            offset = 0
            ingest = await content.open_ingest("ns", "r")
            for number, piece in enumerate(pieces):
                if number == reopen_at:
                    await ingest.close()
                    ingest = await content.open_ingest("ns", "r")
                    assert (await ingest.state()).offset == offset
                offset = await ingest.write(piece)
            async with ingest:
                done = await ingest.commit(len(whole))
            assert done.digest == digest_of(whole)
            assert await content.read_all("ns", done.digest) == whole
            await content.delete("ns", done.digest)

    trio.run(run)


async def test_an_ingest_begun_under_a_lease_ends_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (content, store):
        leases = Leases(store)
        collector = Collector(store, {"ingest": content.reclaim})
        await leases.create("ns", "job", {})
        for ref, lease in (("leased", "job"), ("free", "")):
            async with await content.open_ingest("ns", ref, lease=lease) as ingest:
                await ingest.write(HELLO)
        await collector.collect()
        assert len(await content.list_statuses("ns")) == 2
        await leases.delete("ns", "job")
        await collector.collect()
        assert [status.ref for status in await content.list_statuses("ns")] == ["free"]
        assert len(list((tmp_path / "content/ingest").iterdir())) == 1
