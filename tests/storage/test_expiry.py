"""What expires does so by a clock that nobody sets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from holdfast.actors.system import System
from holdfast.storage import expiry
from holdfast.storage.collector import LOOK_WITHIN_S, Collector, Pace
from holdfast.storage.content import ContentStore
from holdfast.storage.descriptor import Descriptor
from holdfast.storage.digest import Digest
from holdfast.storage.expiry import (
    EXPIRE_LABEL,
    Clock,
    boot_id,
    left_ns,
    parse_time_ns,
    read_clock,
    stamp,
    stamp_anew,
)
from holdfast.storage.images import Image, Images
from holdfast.storage.leases import Leases
from holdfast.storage.store import Store

NS = "default"
HOUR_NS = 3600 * 10**9
YEAR_NS = 365 * 24 * HOUR_NS
QUICK = Pace(start_delay_s=0.0, share_max=0.5, collection_min_s=0.001)


def in_s(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


class Hands:
    """A machine's clocks, which a test sets: `set_s` the time of day, `passed_s` both."""

    def __init__(self) -> None:
        self.set_s = 0.0
        self.passed_s = 0.0

    def __call__(self) -> Clock:
        now = read_clock()
        wall_ns = now.wall_ns + round((self.set_s + self.passed_s) * 1e9)
        return Clock(wall_ns, now.boot_ns + round(self.passed_s * 1e9), now.boot)


@pytest.mark.parametrize("set_s", [-10 * 365 * 86400.0, 0.0, 10 * 365 * 86400.0])
async def test_setting_the_clock_neither_kills_nor_prolongs_a_lease(
    store: Store, set_s: float
) -> None:
    hands = Hands()
    collector = Collector(store, {}, clock=hands)
    leases = Leases(store)
    await leases.create(NS, "lease", {EXPIRE_LABEL: in_s(3600)})
    hands.set_s = set_s
    await collector.collect()
    assert [lease.id for lease in leases.list(NS)] == ["lease"]
    hands.passed_s = 3500
    await collector.collect()
    assert [lease.id for lease in leases.list(NS)] == ["lease"]
    hands.passed_s = 3700
    await collector.collect()
    assert leases.list(NS) == []


async def test_an_image_keeps_its_stamp_while_its_time_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Images(store)
    target = Descriptor(media_type="m", digest=Digest("sha256:" + "0" * 64), size=1)
    image = Image(name="img", target=target, labels={EXPIRE_LABEL: in_s(3600)})
    await images.create(NS, image)
    record = store.get("image", NS, "img")
    assert record is not None
    first = record["stamp"]
    # The time of day is set forward; then somebody changes another label.
    later = read_clock()._replace(wall_ns=read_clock().wall_ns + YEAR_NS)
    monkeypatch.setattr(expiry, "read_clock", lambda: later)
    await images.update(NS, Image(name="img", target=target, labels={"a": "b"}), ["labels.a"])
    record = store.get("image", NS, "img")
    assert record is not None
    assert record["stamp"] == first
    assert record["labels"]["a"] == "b"
    await images.update(
        NS, Image(name="img", target=target, labels={EXPIRE_LABEL: in_s(7200)}), ["labels"]
    )
    record = store.get("image", NS, "img")
    assert record is not None
    assert record["stamp"] == later._asdict()
    await images.update(NS, Image(name="img", target=target), ["labels"])
    record = store.get("image", NS, "img")
    assert record is not None
    assert "stamp" not in record


async def test_an_ingest_goes_by_the_boots_clock_too(store: Store, tmp_path: Path) -> None:
    content = await ContentStore.open(tmp_path / "content", store)
    async with System.open(), await content.open_ingest(NS, "ref"):
        pass
    hands = Hands()
    hands.set_s = 10 * 365 * 86400.0
    collector = Collector(store, {"ingest": content.reclaim}, clock=hands)
    await collector.collect()
    assert store.count("ingest") == 1
    hands.passed_s = 23 * 3600
    await collector.collect()
    assert store.count("ingest") == 1
    hands.passed_s = 25 * 3600
    await collector.collect()
    assert store.count("ingest") == 0


def test_in_another_boot_the_time_of_day_decides() -> None:
    written = Clock(wall_ns=YEAR_NS, boot_ns=HOUR_NS, boot="before")
    record = {"expires_at": YEAR_NS + 2 * HOUR_NS, "stamp": stamp(written)}
    same = Clock(wall_ns=0, boot_ns=2 * HOUR_NS, boot="before")
    assert left_ns("ingest", record, same) == HOUR_NS
    other = Clock(wall_ns=YEAR_NS + HOUR_NS, boot_ns=5, boot="after")
    assert left_ns("ingest", record, other) == HOUR_NS
    assert left_ns("ingest", {"expires_at": HOUR_NS}, other) == -YEAR_NS
    assert left_ns("container", {"labels": {EXPIRE_LABEL: "2020-01-01T00:00:00Z"}}, other) is None
    assert left_ns("lease", {"labels": {EXPIRE_LABEL: "soon"}}, other) is None


async def test_the_first_start_after_a_boot_stamps_anew(store: Store) -> None:
    old = {"stamp": {"wall_ns": 1, "boot_ns": 1, "boot": "before"}, "created_at": 0}
    labels = {EXPIRE_LABEL: in_s(3600)}
    await store.write(lambda tx: tx.put("lease", NS, "old", {**old, "labels": labels}))
    await store.write(lambda tx: tx.put("ingest", NS, "bare", {"expires_at": 5}))
    await store.write(lambda tx: tx.put("lease", NS, "ever", {"labels": {}, "created_at": 0}))
    leases = Leases(store)
    await leases.create(NS, "new", labels)
    new = store.get("lease", NS, "new")
    await stamp_anew(store)
    assert store.get("lease", NS, "new") == new
    assert "stamp" not in (store.get("lease", NS, "ever") or {})
    for kind, key in (("lease", "old"), ("ingest", "bare")):
        record = store.get(kind, NS, key)
        assert record is not None
        assert record["stamp"]["boot"] == boot_id()
    commits = store.commits
    await stamp_anew(store)
    assert store.commits == commits


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(10):
        # The collector tells nobody of its schedule; the store's time is the real one.
        while not condition():
            await trio.sleep(0.002)


async def test_a_lease_made_after_the_last_collection_goes_with_nothing_else_happening(
    store: Store,
) -> None:
    collector = Collector(store, {}, QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector._done == 1)
        await Leases(store).create(NS, "lease", {EXPIRE_LABEL: in_s(0.3)})
        await trio.sleep(0.1)
        assert store.count("lease") == 1
        await until(lambda: store.count("lease") == 0)
        nursery.cancel_scope.cancel()


async def test_what_expired_while_the_machine_slept_is_seen_soon(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's own clock stood still meanwhile: it is not what decides."""
    monkeypatch.setattr("holdfast.storage.collector.LOOK_WITHIN_S", 0.1)
    assert LOOK_WITHIN_S <= 60
    hands = Hands()
    collector = Collector(store, {}, QUICK, clock=hands)
    await Leases(store).create(NS, "lease", {EXPIRE_LABEL: in_s(3600)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collector.run)
        await until(lambda: collector._done == 1)
        hands.passed_s = 3601
        await until(lambda: store.count("lease") == 0)
        nursery.cancel_scope.cancel()


def test_a_clock_reads_this_boot() -> None:
    now = read_clock()
    assert now.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    assert now.boot_ns / 1e9 == pytest.approx(uptime_s, abs=5)
    assert parse_time_ns("2020-01-01T00:00:00Z") == 1577836800 * 10**9
