"""Every fault has a way out, and after it nothing is held back."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.actors.errors import FailedPrecondition, NotFound
from holdfast.actors.system import System
from holdfast.storage.content import ContentStore
from holdfast.storage.contentfaults import ContentFaults
from holdfast.storage.faults import Fault, Faults
from holdfast.storage.store import Store, Transaction

NS = "default"
IMAGE = {"labels": {}}


def damage(path: Path, where: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        changed = connection.execute(f"UPDATE record SET value = x'00' WHERE {where}")
        assert changed.rowcount > 0
        connection.commit()


class Collections:
    """Counts how often it was asked to collect, and how many records were damaged then."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[int] = []

    async def collect(self) -> None:
        self.asked.append(len(self._store.damaged))


class Stubborn:
    """A keeper with two faults, of which it gives up one."""

    def __init__(self) -> None:
        self._faults = [
            Fault(kind="bundle", namespace=NS, key=key, reason="", since_ns=1)
            for key in ("busy", "free")
        ]

    def faults(self) -> Sequence[Fault]:
        return self._faults

    async def give_up(self, fault: Fault) -> None:
        if fault.key == "busy":
            raise FailedPrecondition("a process lives in it")
        self._faults.remove(fault)


async def two_damaged(path: Path) -> None:
    def work(tx: Transaction) -> None:
        tx.put("image", NS, "one", IMAGE)
        tx.put("image", NS, "two", IMAGE)
        tx.put("image", NS, "sound", IMAGE)

    async with Store.open(path) as store:
        await store.write(work)
    damage(path, "key IN ('one', 'two')")


async def test_a_damaged_record_is_a_fault_with_the_same_id_in_each_life(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await two_damaged(path)
    lives: list[list[str]] = []
    for _ in range(2):
        async with Store.open(path) as store:
            found = Faults(store, [], Collections(store).collect).list()
            told = [(one.kind, one.namespace, one.key) for one in found]
            assert told == [("image record", NS, "one"), ("image record", NS, "two")]
            assert all(one.since_ns > 0 and "checksum" in one.reason for one in found)
            lives.append([one.id for one in found])
    assert lives[0] == lives[1]
    assert len(set(lives[0])) == 2


async def test_removing_one_leaves_the_others_and_collects_after_the_last(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await two_damaged(path)
    async with Store.open(path) as store:
        collections = Collections(store)
        faults = Faults(store, [], collections.collect)
        one, two = faults.list()
        assert await faults.remove([one.id]) == [one]
        assert faults.list() == [two]
        assert collections.asked == []
        assert await faults.remove([two.id]) == [two]
        assert collections.asked == [0]
    async with Store.open(path) as store:
        assert store.damaged == []
        assert [row.key for row in store.scan("image")] == ["sound"]


async def test_an_unknown_id_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await two_damaged(path)
    async with Store.open(path) as store:
        faults = Faults(store, [], Collections(store).collect)
        one, two = faults.list()
        with pytest.raises(NotFound, match="fault 0123"):
            await faults.remove([one.id, "0123"])
        assert faults.list() == [one, two]


async def test_what_is_refused_does_not_keep_the_others(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "db") as store:
        faults = Faults(store, [Stubborn()], Collections(store).collect)
        with pytest.raises(FailedPrecondition, match="lives in it"):
            await faults.remove([fault.id for fault in faults.list()])
        assert [fault.key for fault in faults.list()] == ["busy"]


async def test_files_held_for_a_damaged_record_go_with_it(tmp_path: Path) -> None:
    async with System.open(), Store.open(tmp_path / "db") as store:
        content = await ContentStore.open(tmp_path / "content", store)
        lost = await content.write_blob(NS, "lost", b"lost")
        kept = await content.write_blob(NS, "kept", b"kept")
        ingest = await content.open_ingest(NS, "half")
        await ingest.write(b"half", 0)
        await ingest.close()
    damage(tmp_path / "db", f"(kind = 'content' AND key = '{lost}') OR kind = 'ingest'")
    async with System.open(), Store.open(tmp_path / "db") as store:
        content = await ContentStore.open(tmp_path / "content", store)
        faults = Faults(store, [ContentFaults(content)], Collections(store).collect)
        assert [fault.held for fault in faults.list()] == [False, False, True, True]
        assert content.blob_path(lost).exists()
        removed = await faults.remove([fault.id for fault in faults.list() if not fault.held])
        assert len(removed) == 4
        assert faults.list() == []
        assert not content.blob_path(lost).exists()
        assert content.blob_path(kept).exists()
        assert list((tmp_path / "content/ingest").iterdir()) == []


async def test_a_held_file_that_was_stored_again_stays(tmp_path: Path) -> None:
    async with System.open(), Store.open(tmp_path / "db") as store:
        content = await ContentStore.open(tmp_path / "content", store)
        digest = await content.write_blob(NS, "first", b"again")
        await content.write_blob(NS, "other", b"other")
    damage(tmp_path / "db", f"key = '{digest}'")
    async with System.open(), Store.open(tmp_path / "db") as store:
        content = await ContentStore.open(tmp_path / "content", store)
        faults = Faults(store, [ContentFaults(content)], Collections(store).collect)
        assert await content.write_blob(NS, "second", b"again") == digest
        await faults.remove([fault.id for fault in faults.list()])
        assert content.blob_path(digest).read_bytes() == b"again"


async def test_the_damaged_file_goes_with_its_fault(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with Store.open(path) as store:
        await store.write(lambda tx: tx.put("image", NS, "one", IMAGE))
    with path.open("r+b") as file:
        file.write(b"\xa5" * 4096)
    async with Store.open(path) as store:
        faults = Faults(store, [], Collections(store).collect)
        (fault,) = faults.list()
        assert fault.kind == "database"
        assert len(list(tmp_path.glob("db.damaged-*"))) == 1
        await faults.remove([fault.id])
        assert list(tmp_path.glob("db.damaged-*")) == []
        assert [row.key for row in store.scan("image")] == ["one"]
