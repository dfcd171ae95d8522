"""Expiry: when what is kept only for a time goes, by a clock that nobody sets.

A client names a time of day (`containerd.io/gc.expire`). What counts is how much of it was left
when it was written, measured since by CLOCK_BOOTTIME, which goes on while the machine sleeps and
takes no notice of whoever sets the clock. So each record that expires carries a *stamp*, the
reading of both clocks when it was written:

    written at 12:00, boot + 100 s, to expire at 13:00   ->   goes at boot + 3700 s

A clock that is set forward by a year kills no lease, and one that is set back makes none
immortal. A boot starts that clock anew: the first daemon after it asks the time of day once for
each record, stamps it, and counts from there.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .store import Record, Store, Transaction

EXPIRE_LABEL = "containerd.io/gc.expire"
EXPIRING = ("lease", "image", "ingest")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d([.,]\d+)?([Zz]|[+-]\d\d:\d\d)")


class Clock(NamedTuple):
    """Both clocks at one moment: nanoseconds since 1970, and since the boot of that id."""

    wall_ns: int
    boot_ns: int
    boot: str


def read_clock() -> Clock:
    """Both clocks now."""
    return Clock(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), boot_id())


@cache
def boot_id() -> str:
    """Names this boot of the machine."""
    return BOOT_ID.read_text(encoding="ascii").strip()


def stamp(clock: Clock | None = None) -> Record:
    """What a record that expires keeps of the moment it is written."""
    return (clock or read_clock())._asdict()


def stamp_if_expiring(labels: Mapping[str, str], old: Record | None = None) -> Mapping[str, Record]:
    """The fields that a record with these labels has besides: a stamp, if they name a time.

    The stamp of the `old` record stays while the time it was made for does.
    """
    text = labels.get(EXPIRE_LABEL)
    if text is None:
        return {}
    if old is not None and "stamp" in old and old["labels"].get(EXPIRE_LABEL) == text:
        return {"stamp": old["stamp"]}
    return {"stamp": stamp()}


def expiry_ns(kind: str, record: Record) -> int | None:
    """The time of day after which a record counts no longer. A malformed one never comes."""
    if kind == "ingest":
        at_ns: int | None = record.get("expires_at")
        return at_ns
    if kind not in EXPIRING:
        return None
    labels: Mapping[str, str] = record.get("labels") or {}
    return parse_time_ns(labels.get(EXPIRE_LABEL, ""))


def left_ns(kind: str, record: Record, now: Clock) -> int | None:
    """How long a record still counts; negative once it is over, None when it does not expire."""
    at_ns = expiry_ns(kind, record)
    if at_ns is None:
        return None
    written = record.get("stamp")
    if written is None or written["boot"] != now.boot:
        return at_ns - now.wall_ns
    return int(at_ns - written["wall_ns"] - (now.boot_ns - written["boot_ns"]))


async def stamp_anew(store: Store) -> None:
    """At a start: what was written in an earlier boot, or without a stamp, gets one of now."""
    boot = boot_id()

    def is_old(kind: str, record: Record) -> bool:
        if expiry_ns(kind, record) is None:
            return False
        written: Record = record.get("stamp") or {}
        return written.get("boot") != boot

    old = [
        (kind, row.namespace, row.key)
        for kind in EXPIRING
        for row in store.scan(kind)
        if is_old(kind, row.value)
    ]

    def work(tx: Transaction) -> None:
        written = stamp()
        for kind, namespace, key in old:
            record = tx.get(kind, namespace, key)
            if record is not None:
                tx.put(kind, namespace, key, {**record, "stamp": written})

    if old:
        await store.write(work)


def parse_time_ns(text: str) -> int | None:
    """The nanoseconds since 1970 of an RFC 3339 time, or None when it is not one."""
    if not _TIME.fullmatch(text):
        return None
    try:
        return int(datetime.fromisoformat(text.upper()).timestamp() * 1_000_000_000)
    except (ValueError, OverflowError):
        return None
