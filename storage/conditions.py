"""Conditional references: an image or a blob that keeps a snapshot while a condition holds.

    on the image or blob   containerd.io/gc.cond.snapshot.<snapshotter>[/x] = usedat<72h|<key>
    on the snapshot        containerd.io/gc.cond.value-usedat[x] = 2026-11-29T04:00:00Z

The snapshot is kept by whoever keeps the image, as long as it was used less than 72 hours ago.
Several conditions, with commas between them, are met when one is. `>` means longer ago. What
does not read as one of these is no condition and keeps nothing, as in containerd.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .expiry import parse_time_ns

CONDITION = "containerd.io/gc.cond.snapshot"
USED_AT = "containerd.io/gc.cond.value-usedat"

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3600 * 1_000_000_000,
}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[+-]?(?:0|(?:{_NUMBER}(?:ns|us|µs|μs|ms|s|m|h))+)")


class Condition(NamedTuple):
    """A reference to a snapshot's key (`snapshotter/key`) that one of these ages decides."""

    key: str
    ages: tuple[tuple[str, int], ...]
    """`<` or `>`, and nanoseconds."""


def conditions(labels: Mapping[str, str]) -> Iterator[tuple[str, Condition]]:
    """Each label that is a condition, and what it says."""
    for label, value in labels.items():
        if not label.startswith(CONDITION):
            continue
        alternatives, bar, key = value.partition("|")
        snapshotter = label.removeprefix(CONDITION).lstrip("./").partition("/")[0]
        ages = [_age(alternative) for alternative in alternatives.split(",")]
        met = tuple(age for age in ages if age is not None)
        if bar and met:
            yield label, Condition(f"{snapshotter}/{key}", met)


def _age(text: str) -> tuple[str, int] | None:
    found = re.fullmatch(r"([^<>=]*)([<>])(.*)", text, re.DOTALL)
    if found is None or found[1] != "usedat":
        return None
    duration_ns = parse_duration_ns(found[3])
    return None if duration_ns is None else (found[2], duration_ns)


def met_until_ns(condition: Condition, labels: Mapping[str, str], now_ns: int) -> int | None:
    """None while no use of the snapshot meets the condition; else the time until which one does,
    0 for ever."""
    until: list[int] = []
    for label, value in labels.items():
        if not label.startswith(USED_AT):
            continue
        used_ns = parse_time_ns(value)
        if used_ns is None:
            continue
        for sign, age_ns in condition.ages:
            if sign == "<" and now_ns - used_ns < age_ns:
                until.append(used_ns + age_ns)
            elif sign == ">" and now_ns - used_ns > age_ns:
                until.append(0)
    if not until:
        return None
    return 0 if 0 in until else max(until)


def parse_duration_ns(text: str) -> int | None:
    """The nanoseconds of a duration as Go writes it, `1h30m`, or None when it is not one."""
    if not _DURATION.fullmatch(text):
        return None
    parts = _PART.findall(text)
    total = sum(round(float(number) * _UNITS[unit]) for number, unit in parts)
    return -total if text.startswith("-") else total
