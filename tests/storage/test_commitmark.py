"""Commits that were told to be on the disk are missed when they are not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from holdfast.storage.commitmark import CommitMark, mark_path
from holdfast.storage.salvage import SEQUENCE_SKIP
from holdfast.storage.store import Store, Transaction


def made(number: int, tx: Transaction) -> None:
    tx.put("container", "default", f"c{number}", {"blob": b"x" * 5000})
    tx.emit("default", "/made", "T", {"number": number})


async def killed(tmp_path: Path, writes: int) -> Path:
    """A database as kill -9 leaves it, with the commits in its log."""
    path, copy = tmp_path / "live/db", tmp_path / "db"
    path.parent.mkdir()
    async with Store.open(path) as store:
        for number in range(writes):
            await store.write(lambda tx, number=number: made(number, tx))  # type: ignore[misc]
        for suffix in ("", "-wal", ".mark"):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    return copy


async def test_a_kill_loses_nothing_and_nothing_is_told(tmp_path: Path) -> None:
    path = await killed(tmp_path, 10)
    for _ in range(2):
        async with Store.open(path) as store:
            assert store.count("container") == 10
            assert not store.damaged


@pytest.mark.parametrize("harm", ["cut", "middle"])
async def test_commits_lost_with_the_log_are_told_and_the_log_is_kept(
    tmp_path: Path, harm: str
) -> None:
    path = await killed(tmp_path, 10)
    log = path.with_name("db-wal")
    content = bytearray(log.read_bytes())
    match harm:
        case "cut":
            del content[len(content) * 2 // 3 :]
        case _:
            at = len(content) // 2
            content[at : at + 100] = bytes(100)
    log.write_bytes(content)
    async with Store.open(path) as store:
        assert store.count("container") < 10
        (damaged,) = store.damaged
        assert "commits are lost with its log" in damaged.reason
        # No sequence number that a lost event may have had is given to another.
        await store.write(lambda tx: made(99, tx))
        assert store.events.last_seq > SEQUENCE_SKIP
        (kept,) = tmp_path.glob("db.damaged-*-wal")
        assert kept.read_bytes() == content
    async with Store.open(path) as store:
        assert store.damaged == [damaged]


@pytest.mark.parametrize(("harm", "left"), [("header", 10), ("gone", 0)])
async def test_a_log_that_held_all_is_read_for_what_is_left(
    tmp_path: Path, harm: str, left: int
) -> None:
    path = await killed(tmp_path, 10)
    log = path.with_name("db-wal")
    if harm == "gone":
        log.unlink()
    else:
        log.write_bytes(bytes(32) + log.read_bytes()[32:])
    async with Store.open(path) as store:
        assert store.count("container") == left
        (damaged,) = store.damaged
        reasons = {"gone": "nothing is left in it", "header": "the log's header is not one"}
        assert reasons[harm] in damaged.reason
        await store.write(lambda tx: made(99, tx))
        assert store.events.last_seq > 10


async def test_a_headless_log_gives_its_newer_versions(tmp_path: Path) -> None:
    path, copy = tmp_path / "live/db", tmp_path / "db"
    path.parent.mkdir()
    for turn in (1, 2):
        value = {"updated_at": turn, "blob": b"x" * 20_000}
        async with Store.open(path) as store:
            await store.write(lambda tx, value=value: tx.put("image", "ns", "a", value))  # type: ignore[misc]
            await store.write(lambda tx: made(1, tx))
            for suffix in ("", "-wal", ".mark"):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    log = copy.with_name("db-wal")
    # The header and the first frame: what is left does not say by itself which use it is of.
    log.write_bytes(os.urandom(32 + 24) + log.read_bytes()[56:])
    async with Store.open(copy) as store:
        record = store.get("image", "ns", "a")
        assert record is not None
        assert record["updated_at"] == 2
        assert len(store.damaged) == 1


async def test_an_older_database_in_the_place_of_a_newer_is_told(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with Store.open(path) as store:
        await store.write(lambda tx: made(1, tx))
    shutil.copyfile(path, tmp_path / "older")
    async with Store.open(path) as store:
        await store.write(lambda tx: made(2, tx))
    shutil.copyfile(tmp_path / "older", path)
    async with Store.open(path) as store:
        (damaged,) = store.damaged
        assert "1 commits are lost" in damaged.reason


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 12])
async def test_a_mark_that_makes_no_sense_is_none(tmp_path: Path, content: bytes) -> None:
    path = await killed(tmp_path, 3)
    mark_path(path).write_bytes(content)
    async with Store.open(path) as store:
        assert not store.damaged
        assert store.count("container") == 3
    mark = CommitMark(path)
    assert mark.read() > 0
    mark.close()


async def test_a_store_without_a_mark_opens_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "db"
    mark_path(path).mkdir()  # cannot be opened as a file
    for number in (1, 2):
        async with Store.open(path) as store:
            await store.write(lambda tx, number=number: made(number, tx))  # type: ignore[misc]
            assert store.count("container") == number
            assert not store.damaged
