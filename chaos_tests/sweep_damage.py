"""Damage to the metadata database: whatever is overwritten or cut off, the daemon starts.

    python -m chaos_tests.sweep_damage --wounds 200 --seed 7

A daemon with many records and two running containers is killed or ended in order, so that the
database's log is there or folded in. Each wound harms a copy of the files: 24 kB overwritten at
any place, or the file cut off at any length. Then the daemon must start, serve, name what was
lost, keep what was not harmed, and leave running containers alone.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from examples import busybox_image

from holdfast.api.proto.services import admin_pb2

from . import sweep_asks as asks
from .sweep_daemon import House, NoAnswer
from .sweep_view import View, collect, look

CONTAINERS = 150
RUNNING = ("steady-1", "steady-2")
WOUND_BYTES = 24 * 1024
SUFFIXES = ("", "-wal", "-shm", ".mark")
# So many of the records that are made here fit into what is overwritten, at most.
LOST_MAX = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Wound:
    """What is done to the files of a database."""

    log_folded: bool
    """The daemon had ended in order: all is in the main file."""
    file: str
    """Its suffix: the main file or the log."""
    deed: str
    """`overwrite`, `zero` or `cut`."""
    at: float
    """Where, as a share of the file's length."""
    seed: int

    def __str__(self) -> str:
        log = "folded" if self.log_folded else "present"
        return f"{self.deed} holdfast.db{self.file} at {self.at:.4f}, log {log}, seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """How the daemon came out of it."""

    wound: Wound
    start_s: float
    faults: Sequence[str]
    lost: int
    """Records that clients no longer see, or see as they were before."""
    wrong: Sequence[str]
    """What must not be: empty when all is well."""


def draw(seed: int) -> Wound:
    """The wound of a seed."""
    chance = random.Random(seed)
    log_folded = chance.random() < 0.5
    return Wound(
        log_folded=log_folded,
        file="" if log_folded or chance.random() < 0.6 else "-wal",
        deed=chance.choice(["overwrite", "overwrite", "zero", "cut"]),
        at=chance.choice([0.0, chance.random(), chance.random(), chance.random()]),
        seed=seed,
    )


def inflict(path: Path, wound: Wound) -> None:
    """Harm a file."""
    size = path.stat().st_size
    at = int(size * wound.at)
    with path.open("r+b") as file:
        if wound.deed == "cut":
            file.truncate(at)
            return
        file.seek(at)
        count = min(WOUND_BYTES, size - at)
        noise = random.Random(wound.seed).randbytes(count)
        file.write(noise if wound.deed == "overwrite" else bytes(count))


class Campaign:
    """The daemon, the two states of its database, and what it had."""

    def __init__(self, base: Path) -> None:
        self.house = House(base)
        self._kept: Mapping[bool, Path] = {True: base / "folded", False: base / "present"}
        self._whole: dict[bool, View] = {}
        self._init_pids: Sequence[int] = ()

    async def prepare(self) -> None:
        """Fill a daemon, keep its database with the log folded in and with it beside."""
        house = self.house
        archive = house.base / "busybox.tar"
        busybox_image.build(archive)
        house.arm("")
        await house.start()
        async with house.session() as session:
            await asks.import_image(session, archive)
            for number in range(CONTAINERS):
                await asks.create_container(
                    session, f"c{number:04}", busybox_image.DEFAULT_NAME, "true"
                )
            for name in RUNNING:
                await asks.create_container(
                    session, name, busybox_image.DEFAULT_NAME, "sleep", "100000"
                )
                await asks.create_task(session, name)
                await session.start(name)
            await collect(session)
            self._whole[True] = await look(session)
        await house.end(signal.SIGTERM)
        self._keep(True)
        await house.start()
        async with house.session() as session:
            for number in range(CONTAINERS, CONTAINERS + 20):
                await asks.create_container(
                    session, f"c{number:04}", busybox_image.DEFAULT_NAME, "true"
                )
            for number in range(CONTAINERS):
                await asks.label_container(session, f"c{number:04}", {"turn": "second"})
            for number in range(CONTAINERS, CONTAINERS + 20):
                await asks.delete_container(session, f"c{number:04}")
            self._whole[False] = await look(session)
            self._init_pids = [(await session.task(name)).process.pid for name in RUNNING]
        await house.end()
        self._keep(False)

    def _keep(self, log_folded: bool) -> None:
        target = self._kept[log_folded]
        target.mkdir()
        for suffix in SUFFIXES:
            path = self.house.database.with_name(self.house.database.name + suffix)
            if path.exists():
                shutil.copyfile(path, target / path.name)

    async def try_one(self, wound: Wound) -> Found:
        """Restore the files, harm them, start, look, end."""
        house = self.house
        for path in house.root.glob("holdfast.db*"):
            path.unlink()
        for path in self._kept[wound.log_folded].iterdir():
            shutil.copyfile(path, house.root / path.name)
        target = house.database.with_name(house.database.name + wound.file)
        inflict(target, wound)
        try:
            start_s = await house.start()
        except NoAnswer as error:
            await house.end()
            return Found(wound=wound, start_s=0.0, faults=[], lost=0, wrong=[str(error)])
        try:
            return await self._judge(wound, start_s)
        finally:
            await house.end()

    async def _judge(self, wound: Wound, start_s: float) -> Found:
        whole = self._whole[wound.log_folded]
        async with self.house.session() as session:
            now = await look(session)
            answer = await session.call(
                "admin/Faults", admin_pb2.FaultsRequest(), admin_pb2.FaultsResponse
            )
            wrong: list[str] = []
            lost = [
                *(
                    name
                    for name, value in whole.containers.items()
                    if now.containers.get(name) != value
                ),
                *(whole.images - now.images),
                *(whole.content - now.content),
                *(set(whole.snapshots) - set(now.snapshots)),
                *(whole.namespaces - now.namespaces),
            ]
            if wound.deed != "cut" and len(lost) > LOST_MAX:
                wrong.append(f"{len(lost)} records are lost, more than can have lain there")
            if lost and not answer.faults:
                wrong.append(f"{len(lost)} records are lost and no fault names any")
            await collect(session)
            after = await look(session)
            if answer.faults and after.content != now.content:
                wrong.append("content was collected while records are damaged")
            try:
                await asks.create_lease(session, "proof")
                await asks.delete_lease(session, "proof")
            except Exception as error:  # any failure is what we look for
                wrong.append(f"cannot write: {error!r}")
        wrong += [f"process {pid} was ended" for pid in self._init_pids if not _lives(pid)]
        faults = [f"{one.kind} {one.namespace} {one.key}: {one.reason}" for one in answer.faults]
        return Found(wound=wound, start_s=start_s, faults=faults, lost=len(lost), wrong=wrong)


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def run(wounds: Sequence[Wound], tell: Callable[[str], None]) -> Sequence[Found]:
    """Try each wound on a daemon of its own directory; gone afterwards."""
    campaign = Campaign(Path(tempfile.mkdtemp(prefix="holdfast-damage-")))
    found: list[Found] = []
    try:
        await campaign.prepare()
        for wound in wounds:
            one = await campaign.try_one(wound)
            found.append(one)
            tell(f"{wound}: start {one.start_s:.2f} s, lost {one.lost}, faults {len(one.faults)}")
            for wrong in one.wrong:
                tell(f"  WRONG: {wrong}")
    finally:
        campaign.house.clear()
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Harm the metadata database anywhere.")
    parser.add_argument("--wounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None, help="Of the first wound.")
    given = parser.parse_args()
    first = given.seed if given.seed is not None else time.time_ns() % 1_000_000
    print(f"seeds {first} to {first + given.wounds - 1}")
    wounds = [draw(first + number) for number in range(given.wounds)]
    found = trio.run(run, wounds, print)
    wrong = [one for one in found if one.wrong]
    slowest = max(one.start_s for one in found)
    print(f"{len(found)} wounds, {len(wrong)} wrong, slowest start {slowest:.2f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
