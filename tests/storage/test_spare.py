"""On a full disk nothing new is made, but everything can be deleted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from holdfast.actors.errors import ResourceExhausted
from holdfast.storage import spare as spare_module
from holdfast.storage.spare import Spare
from holdfast.storage.store import Store, Transaction


def test_the_spare_takes_and_gives_space(tmp_path: Path) -> None:
    path = tmp_path / "spare"
    spare = Spare(path, 1 << 16)
    assert not spare.held
    spare.hold()
    assert spare.held
    assert path.stat().st_blocks * 512 >= 1 << 16
    spare.give()
    assert not spare.held
    assert not path.exists()
    spare.hold()
    assert not spare.held
    spare.hold(at_once=True)
    assert spare.held


def test_a_spare_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spare_module.os, "posix_fallocate", full)
    spare = Spare(tmp_path / "spare", 1 << 16)
    spare.hold()
    assert not spare.held
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", tmp_path], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def put(key: str, kind: str, tx: Transaction) -> None:
    tx.put(kind, "default", key, {"blob": os.urandom(3000)})
    tx.emit("default", "/t", "T", {"key": key})


def delete(key: str, tx: Transaction) -> None:
    assert tx.delete("container", "default", key)
    tx.emit("default", "/t", "T", {"key": key})


def fill(fd: int) -> None:
    while True:
        os.write(fd, b"x" * 4096)


@pytest.mark.root
async def test_a_full_disk_lets_delete_and_exit(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare_module, "AGAIN_AFTER_S", 0.0)
    path = small_disk / "meta.db"
    records = 400
    async with Store.open(path, spare_bytes=1 << 20) as store:
        for number in range(records):
            await store.write(partial(put, f"c{number}", "container"))
        hog = os.open(small_disk / "hog", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="No space left"):
            fill(hog)
        refused = 0
        for number in range(records):
            try:
                await store.write(partial(put, f"more{number}", "container"))
            except ResourceExhausted:
                refused += 1
        assert refused > 0
        for number in range(50):
            await store.write(partial(put, f"e{number}", "exit"))
        for number in range(records):
            await store.write(partial(delete, f"c{number}"))
        os.ftruncate(hog, 0)
        os.close(hog)
        await store.write(partial(put, "again", "container"))
    async with Store.open(path, spare_bytes=1 << 20) as store:
        assert store.count("container") == records - refused + 1
        assert store.count("exit") == 50
        assert not store.damaged
