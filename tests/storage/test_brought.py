"""What a layer has brought is known again, in little memory."""

import random

import pytest

from holdfast.actors.errors import ResourceExhausted
from holdfast.storage.brought import DirectoryTimes, Names


def test_names_are_known_again_and_no_others() -> None:
    chance = random.Random(1)
    every = [
        (chance.getrandbits(40), chance.randbytes(chance.randrange(1, 40))) for _ in range(50_000)
    ]
    names = Names()
    for inode, name in every[::2] + every[:100:2]:
        names.add(inode, name)
    assert all(one in names for one in every[::2])
    assert not any(one in names for one in every[1::2])
    # Eight bytes a slot, and at least a quarter of them taken.
    assert len(names._slots) <= 4 * 25_000


def test_a_name_is_that_of_its_directory() -> None:
    names = Names()
    names.add(1, b"a")
    assert (1, b"a") in names
    assert (2, b"a") not in names
    assert (1, b"b") not in names


def test_times_come_back_in_order() -> None:
    times = DirectoryTimes()
    told = [
        ((b"usr",), 1, 5),
        ((b"usr", b"share"), 2, -1_500_000_001),
        ((b"usr", b"sh"), 1 << 60, (1 << 34) * 1_000_000_000 - 1),
        ((b"other",), 3, 0),
        ((b"usr", b"share"), 2, 7),
    ]
    for parts, inode, mtime_ns in told:
        times.note(parts, inode, mtime_ns)
    assert list(times) == told


def test_the_names_of_directories_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectoryTimes, "BYTES_MAX", 100_000)
    times = DirectoryTimes()
    for number in range(400):
        times.note((b"%d" % number + b"n" * 200,), number, 0)
    with pytest.raises(ResourceExhausted, match="too many and too long"):
        times.note((b"x" * 60_000,), 0, 0)
    assert len(times._log) <= 100_000
