"""Rows that no tree leads to any more are found in their pages."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.storage.scavenge import PAGE_BYTES, scavenge
from holdfast.storage.store import Store, Transaction

# From a row that fits its page many times to one that goes on in three further pages.
SIZES = (0, 50, 900, 1002, 1003, 4000, 12_000)
NAMES = [f"c{number:03}" for number in range(140)]


def value_of(name: str) -> dict[str, object]:
    return {"name": name, "blob": b"x" * SIZES[int(name[1:]) % len(SIZES)]}


def fill(tx: Transaction) -> None:
    for name in NAMES:
        tx.put("container", "default", name, value_of(name))
        tx.emit("default", "/made", "T", value_of(name))


async def filled(path: Path) -> None:
    async with Store.open(path) as store:
        await store.write(fill)


def root_page(path: Path, table: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    return int(page)


def harm(path: Path, page: int, data: bytes = b"\xa5" * PAGE_BYTES) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(data)


async def test_every_row_of_a_sound_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await filled(path)
    found = scavenge(path)
    assert found.free_known
    assert {key for kind, _, key in found.records if kind == b"container"} == {
        name.encode() for name in NAMES
    }
    assert sorted(found.events) == list(range(1, len(NAMES) + 1))


async def test_the_log_is_read_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with Store.open(path) as store:
        await store.write(fill)
        # Not folded in yet: the file itself holds nothing of it.
        assert path.stat().st_size <= 4 * PAGE_BYTES
        assert len(scavenge(path).records) == len(NAMES) + 1


@pytest.mark.parametrize("table", ["record", "event"])
async def test_a_lost_root_costs_only_the_rows_on_it(tmp_path: Path, table: str) -> None:
    path = tmp_path / "db"
    await filled(path)
    harm(path, root_page(path, table))
    async with Store.open(path) as store:
        left = {row.key: row.value for row in store.scan("container")}
        assert len(left) >= len(NAMES) - 8
        assert all(value == value_of(name) for name, value in left.items())
        assert len(store.damaged) == 1
        with store.events.subscribe(since=0) as subscription, trio.fail_after(5):
            kinds = [(await subscription.receive()).topic for _ in range(len(NAMES) - 8)]
        assert kinds.count("/made") >= len(NAMES) - 16


async def test_what_was_deleted_stays_deleted(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await filled(path)

    def delete(tx: Transaction) -> None:
        for name in NAMES[20:]:
            tx.delete("container", "default", name)

    async with Store.open(path) as store:
        await store.write(delete)
    harm(path, root_page(path, "record"))
    async with Store.open(path) as store:
        assert {row.key for row in store.scan("container")} <= set(NAMES[:20])
        (damaged,) = store.damaged
        assert "may be back" not in damaged.reason


async def test_without_the_list_of_free_pages_it_is_said_that_the_deleted_may_be_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "db"
    await filled(path)
    harm(path, 1)
    async with Store.open(path) as store:
        assert {row.key for row in store.scan("container")} == set(NAMES)
        (damaged,) = store.damaged
        assert "what had been deleted may be back" in damaged.reason


async def test_of_two_copies_of_a_row_the_newer_counts(tmp_path: Path) -> None:
    path = tmp_path / "db"
    await filled(path)
    for turn in (1, 2):
        async with Store.open(path) as store:
            await store.write(
                lambda tx, turn=turn: tx.put(  # type: ignore[misc]
                    "container", "default", NAMES[3], {"updated_at": turn, "blob": b"x" * 9000}
                )
            )
    pages = path.stat().st_size // PAGE_BYTES
    # An older copy of the row's page, where a page that was freed would lie.
    content = path.read_bytes()
    copies = [
        content[n * PAGE_BYTES : (n + 1) * PAGE_BYTES]
        for n in range(pages)
        if b"updated_at" in content[n * PAGE_BYTES : (n + 1) * PAGE_BYTES]
    ]
    for copy in copies:
        harm(path, pages + 1, copy.replace(b"updated_at\x02", b"updated_at\x01"))
    harm(path, 1)
    async with Store.open(path) as store:
        record = store.get("container", "default", NAMES[3])
        assert record is not None
        assert record["updated_at"] == 2


@given(data=st.data())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_bytes_make_it_fail_or_lie(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "db"
    if not path.exists():
        trio.run(filled, path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        count = data.draw(st.integers(1, 9000))
        noise = data.draw(st.randoms(use_true_random=False)).randbytes(count)
        content[at : at + count] = noise[: len(content) - at]
    harmed = tmp_path / "harmed"
    harmed.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    known = {(b"container", b"default", name.encode()) for name in NAMES}
    found = scavenge(harmed)
    assert set(found.records) - {(b"namespace", b"", b"default")} <= known
    assert set(found.events) <= set(range(1, len(NAMES) + 1))
