"""An image keeps a snapshot while a condition on its last use holds."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from holdfast.storage.conditions import Condition, conditions, met_until_ns, parse_duration_ns
from holdfast.storage.expiry import EXPIRE_LABEL
from holdfast.storage.leases import FLAT_LABEL, Resource
from holdfast.storage.store import Store

sys.path.insert(0, str(Path(__file__).parent))
from garbage import PAST, World, digest

NS_PER_S = 10**9
COND = "containerd.io/gc.cond.snapshot.overlayfs"
USED = "containerd.io/gc.cond.value-usedat"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1h30m", 5400),
        ("72h", 259200),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("-10ms", -0.01),
        ("+2us", 0.000002),
        ("0", 0),
        ("5", None),
        ("h", None),
        ("1h ", None),
        ("", None),
        ("1d", None),
    ],
)
def test_durations_are_gos(text: str, seconds: float | None) -> None:
    expected = None if seconds is None else round(seconds * NS_PER_S)
    assert parse_duration_ns(text) == expected


@pytest.mark.parametrize(
    ("label", "value", "condition"),
    [
        (COND, "usedat<1h|key", Condition("overlayfs/key", (("<", 3600 * NS_PER_S),))),
        (f"{COND}/x", "usedat>1s|a|b", Condition("overlayfs/a|b", ((">", NS_PER_S),))),
        (
            COND,
            "odd<1h,usedat<1s,usedat=1s,usedat>2s|k",
            Condition("overlayfs/k", (("<", NS_PER_S), (">", 2 * NS_PER_S))),
        ),
        (COND, "usedat<1h", None),
        (COND, "usedat<soon|key", None),
        (COND, "|key", None),
        ("containerd.io/gc.ref.snapshot.overlayfs", "usedat<1h|key", None),
    ],
)
def test_labels_name_conditions(label: str, value: str, condition: Condition | None) -> None:
    assert [found for _, found in conditions({label: value})] == ([condition] if condition else [])


def test_one_use_that_meets_one_alternative_is_enough() -> None:
    at_ns = 1_577_836_800 * NS_PER_S  # 2020-01-01
    below = Condition("k", (("<", 10 * NS_PER_S),))
    above = Condition("k", ((">", 10 * NS_PER_S),))
    labels = {USED: "2020-01-01T00:00:00Z", f"{USED}.other": "no time"}
    assert met_until_ns(below, labels, at_ns + 9 * NS_PER_S) == at_ns + 10 * NS_PER_S
    assert met_until_ns(below, labels, at_ns + 10 * NS_PER_S) is None
    assert met_until_ns(above, labels, at_ns + 10 * NS_PER_S) is None
    assert met_until_ns(above, labels, at_ns + 11 * NS_PER_S) == 0
    assert met_until_ns(below, {}, at_ns) is None


async def test_a_snapshot_is_kept_while_it_was_used_lately(store: Store) -> None:
    world = World(store)
    now = datetime.now(UTC)
    recent = (now - timedelta(minutes=5)).isoformat()
    old = (now - timedelta(hours=5)).isoformat()
    await world.blob("Man", {f"{COND}/by-blob": "usedat<1h|blobs"})
    labels = {f"{COND}/{key}": f"usedat<1h|{key}" for key in ("fresh", "stale", "unused")}
    await world.image("img", "Man", labels)
    await world.snapshot("base")
    await world.snapshot("fresh", parent="base", labels={USED: recent})
    await world.snapshot("blobs", labels={USED: recent})
    await world.snapshot("stale", labels={USED: old})
    await world.snapshot("unused")
    await world.snapshot("unasked", labels={USED: recent})
    assert await world.left() == {"img", "Man", "fresh", "base", "blobs"}
    # The condition itself makes the next collection due, when it ends.
    due_ns = world.collector._next_expiry_ns
    assert due_ns is not None
    left_s = (due_ns - world.collector._clock().boot_ns) / 1e9
    assert left_s == pytest.approx(55 * 60, abs=60)
    await world.images.delete("default", "img")
    assert await world.left() == set()


async def test_what_is_held_flat_keeps_nothing_on_condition_nor_backwards(store: Store) -> None:
    world = World(store)
    recent = datetime.now(UTC).isoformat()
    labels = {EXPIRE_LABEL: PAST, COND: "usedat<1h|snap"}
    await world.image("img", "Man", labels)
    await world.snapshot("snap", labels={USED: recent})
    await world.blob("Man")
    await world.blob("Sig", {"containerd.io/gc.bref.content": digest("Man")})
    await world.leases.create("default", "lease", {FLAT_LABEL: "1"})
    await world.leases.add_resource("default", "lease", Resource(type="images", id="img"))
    assert await world.left() == {"lease", "img", "Man"}


async def test_labels_of_leases_are_heeded_for_expiry_and_flatness_alone(store: Store) -> None:
    world = World(store)
    await world.blob("Man")
    await world.leases.create("default", "l", {"containerd.io/gc.ref.content": digest("Man")})
    assert await world.left() == {"l"}
