"""No single damage to the database's file keeps the store from opening."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.storage.events import GAP_TOPIC
from holdfast.storage.salvage import SEQUENCE_SKIP
from holdfast.storage.store import Store, Transaction

RECORDS = 400


async def fill(path: Path) -> None:
    def work(tx: Transaction) -> None:
        for number in range(RECORDS):
            tx.put("container", "default", f"c{number:04}", {"blob": b"x" * 200, "n": number})
            tx.emit("default", "/t", "T", {"n": number, "blob": b"y" * 100})

    async with Store.open(path) as store:
        await store.write(work)


async def check_opens(path: Path) -> tuple[int, int]:
    """Opens, holds nothing wrong, and can be written; answers how much is left."""
    async with Store.open(path) as store:
        rows = list(store.scan("container"))
        for row in rows:
            assert row.value == {"blob": b"x" * 200, "n": int(row.key.removeprefix("c"))}
        last = store.events.last_seq
        with store.events.subscribe(since=0) as subscription, trio.fail_after(5):
            seq = 0
            while seq < last:
                event = await subscription.receive()
                if event.topic == GAP_TOPIC:
                    assert not isinstance(event.payload, bytes)
                    assert event.payload["from_seq"] == seq + 1
                else:
                    assert event.seq == seq + 1
                seq = event.seq
            await store.write(lambda tx: tx.emit("default", "/t", "T", {}))
            assert (await subscription.receive()).seq == last + 1
        await store.write(lambda tx: tx.put("container", "default", "new", {}))
        await store.write(lambda tx: tx.delete("container", "default", "new"))
        if len(rows) < RECORDS:
            assert store.damaged
        return len(rows), last


async def test_a_damaged_page_costs_what_lay_on_it(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    await fill(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"c0200") // 4096 * 4096
    content[at : at + 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    left, last = await check_opens(path)
    assert RECORDS - 40 < left < RECORDS
    assert last >= RECORDS
    assert len(list(tmp_path.glob("meta.db.damaged-*"))) == 1
    async with Store.open(path) as store:
        (damaged,) = store.damaged
        assert "the damaged file is meta.db.damaged-" in damaged.reason
        await store.forget_damaged([damaged])
        assert not store.damaged
    async with Store.open(path) as store:
        assert not store.damaged
    assert len(list(tmp_path.glob("meta.db.damaged-*"))) == 1


async def test_a_lost_first_page_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    await fill(path)
    with path.open("r+b") as file:
        file.write(b"\xa5" * 4096)
    assert await check_opens(path) == (RECORDS, RECORDS)
    assert len(list(tmp_path.glob("*graft*"))) == 0


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"not a database at all" * 500)
    async with Store.open(path) as store:
        assert store.count("container") == 0
        assert store.events.last_seq == SEQUENCE_SKIP
        assert store.damaged


@pytest.mark.parametrize("bytes_left", [0, 100, 4096, 9000])
async def test_a_file_cut_short_opens(tmp_path: Path, bytes_left: int) -> None:
    path = tmp_path / "meta.db"
    await fill(path)
    with path.open("r+b") as file:
        file.truncate(bytes_left)
    if bytes_left:
        await check_opens(path)
    else:
        # An empty file is a new database to SQLite, as to us.
        async with Store.open(path) as store:
            assert store.count("container") == 0


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_damaged_stretch_still_opens(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damage") / "meta.db"
    trio.run(fill, path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.sampled_from([1, 16, 512, 4096, 9000]))
    junk = data.draw(st.sampled_from([b"\x00", b"\xff", b"\xa5", b"\x0d"]))
    content[at : at + length] = junk * min(length, len(content) - at)
    path.write_bytes(content)
    trio.run(check_opens, path)
