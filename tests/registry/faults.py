"""Pulls through a proxy that does harm: python -m tests.registry.faults --runs 2000 --seed 7

Each run pulls an image of docker-registry's, and every answer may be harmed. It ends with the right
image, or with a clear error or its client's going away, and then it is pulled once more, unharmed.
After each pull the store is looked through. The seed is printed, and reruns it; `--only N` reruns
one of its runs.
"""

import argparse
import hashlib
import json
import logging
import math
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from faultproxy import BASIC, KINDS, SECRET, USER, Asked, Fault, FaultProxy, Script, no_faults
from servers import registry
from uploads import Made, make, upload

from holdfast.actors.errors import NotFound, Refusal
from holdfast.api.host import Host, embedded, open_host
from holdfast.runtime.vault import teardown
from holdfast.storage.registry.auth import Credentials
from holdfast.storage.transfer import ImageStore, Progress, RegistryPlace

SLOTS = 20
ENDS_WITHIN_S = 180.0
LAYERS = ((300,), (1000, 150_000), (400_000,), (5000, 17_000, 64))
# What is waited for is short here, and what is large is small.
SETTINGS: Mapping[str, object] = {"pull_stall_s": 2.0, "pull_range_bytes": 64 << 10}
CANCELLED, RIGHT = "its client went away", "the right image"


@dataclass(kw_only=True)
class Found:
    """What all runs came to."""

    ends: Counter[str] = field(default_factory=Counter[str])
    faults: Counter[str] = field(default_factory=Counter[str])
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        ends = ", ".join(f"{count} x {end}" for end, count in self.ends.most_common())
        done = ", ".join(f"{kind} {count}" for kind, count in sorted(self.faults.items()))
        return f"{self.ends.total()} runs: {ends}\nfaults: {done}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one run does, drawn from its seed."""

    seed: str
    image: int
    harmed: float
    kinds: Sequence[str]
    pulls: int
    leaves_after_s: float | None
    heads: bool = True
    """Whether also what is asked by HEAD is harmed."""

    @classmethod
    def draw(cls, seed: int, run: int) -> "Plan":
        dice = Random(f"{seed}/{run}")
        return cls(
            seed=f"{seed}/{run}",
            image=dice.randrange(len(LAYERS)),
            harmed=dice.choice((0.1, 0.3, 0.6, 1.0)),
            kinds=KINDS if dice.random() < 0.5 else dice.sample(KINDS, 2),
            pulls=2 if dice.random() < 0.2 else 1,
            leaves_after_s=dice.uniform(0, 0.5) if dice.random() < 0.15 else None,
        )

    def script(self, found: Found) -> Script:
        """The same request has the same fault, in whatever order requests come."""

        def harm(asked: Asked) -> Fault | None:
            place = asked.path.partition("/v2/")[2].split("/", 1)[1]
            dice = Random(f"{self.seed}/{asked.method}/{place}/{asked.nth}")
            if dice.random() >= self.harmed or (asked.method == "HEAD" and not self.heads):
                return None
            kind = dice.choice(self.kinds)
            found.faults[kind] += 1
            return Fault(kind=kind, at=dice.random(), number=dice.randrange(64))

        return harm


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A namespace, a proxy and images of its own; one run after another."""

    host: Host
    proxy: FaultProxy
    namespace: str
    images: Sequence[Made]
    found: Found

    async def run(self, plan: Plan) -> None:
        """One run, with all that is looked at; problems are noted by its seed."""
        image = self.images[plan.image]
        problems: list[str] = []
        self.proxy.begin(plan.script(self.found))
        ends: list[str] = [""] * plan.pulls
        with trio.move_on_after(ENDS_WITHIN_S) as scope:
            async with trio.open_nursery() as nursery:
                for number in range(plan.pulls):
                    nursery.start_soon(self._pull, plan, number, ends)
        if scope.cancelled_caught:
            problems.append(f"no end within {ENDS_WITHIN_S:g} s")
        self.found.ends.update(end.partition(":")[0] for end in ends)
        problems += [f"no clear error: {end}" for end in ends if is_unclear(end)]
        named = None if CANCELLED in ends and RIGHT not in ends else RIGHT in ends
        problems += await self.look(image, whole=RIGHT in ends, named=named, said="".join(ends))

        if RIGHT not in ends:
            problems += await self._pull_unharmed(plan, image)
        if self.proxy.shown_elsewhere:
            problems.append("credentials were shown to another host")
        self.found.problems += [f"{plan.seed}: {one} (ends: {ends})" for one in problems]
        await self._empty(image)

    async def _pull_unharmed(self, plan: Plan, image: Made) -> list[str]:
        """What is wrong when it is pulled as if nothing had been."""
        self.proxy.begin(no_faults)
        ends = [""]
        with trio.move_on_after(ENDS_WITHIN_S):
            unharmed = replace(plan, leaves_after_s=None)
            await self._pull(unharmed, 0, ends)
        if ends != [RIGHT]:
            return [f"afterwards, unharmed: {ends[0] or 'no end'}"]
        found = await self.look(image, whole=True, named=True)
        return [f"afterwards: {one}" for one in found]

    def _name(self, image: int) -> str:
        return f"{self.proxy.authority}/{self.namespace}/image-{image}:1"

    async def _pull(self, plan: Plan, number: int, ends: list[str]) -> None:
        place = RegistryPlace(reference=self._name(plan.image))
        wanted = ImageStore(name="pulled:1")
        leaves = plan.leaves_after_s if number == 0 else None
        with trio.move_on_after(math.inf if leaves is None else leaves):
            try:
                await self.host.transfers.pull(self.namespace, place, wanted, credentials, silent)
                ends[number] = RIGHT
            except Refusal as refusal:
                ends[number] = f"{type(refusal).__name__}: {refusal}"
            return
        ends[number] = CANCELLED

    async def look(
        self, image: Made, *, whole: bool, named: bool | None, said: str = ""
    ) -> list[str]:
        """What is wrong with the store as it is now. `named` None: who knows. What was `said` to
        be wrong must not be kept."""
        host, namespace = self.host, self.namespace
        problems: list[str] = []
        names = [one.target.digest for one in host.images.list(namespace)]
        if named not in (None, bool(names)) or any(digest != image.digest for digest in names):
            problems.append(f"images: {names}")
        here = {info.digest: info.size for info in host.content.list(namespace)}
        for digest, size in here.items():
            try:
                raw = await trio.Path(host.content.blob_path(digest)).read_bytes()
            except FileNotFoundError:
                if host.store.get("content", namespace, digest) is not None:
                    problems.append(f"{digest} has a record and no file")
                continue  # what nobody refers to is collected
            if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest or size != len(raw):
                problems.append(f"wrong bytes are visible as {digest}")
            if digest not in image.blobs:
                problems.append(f"nobody asked for {digest}")
        if whole and here.keys() != image.blobs.keys():
            problems.append(f"the image lacks {image.blobs.keys() - here.keys()}")
        for status in await host.content.list_statuses(namespace):
            digest = status.ref.partition("-")[2]
            if digest not in image.blobs or digest in here:
                problems.append(f"an ingest is left that nobody will go on with: {status.ref}")
            elif whole or status.offset > len(image.blobs[digest]):
                problems.append(f"an ingest is left with all its bytes: {status.ref}")
            elif f"expected {digest}" in said and status.offset == len(image.blobs[digest]):
                problems.append(f"an ingest is left that can only go wrong: {status.ref}")
        # What keeps an image that did not come whole for the next pull expires by itself.
        keeper = set() if whole and named else {f"pull-{image.digest}"}
        if leases := {lease.id for lease in host.leases.list(namespace)} - keeper:
            problems.append(f"leases are left: {leases}")
        return problems

    async def _empty(self, image: Made) -> None:
        """As it was before."""
        host, namespace = self.host, self.namespace
        for lease in host.leases.list(namespace):
            await host.leases.delete(namespace, lease.id)
        for one in host.images.list(namespace):
            await host.images.delete(namespace, one.name)
        for status in await host.content.list_statuses(namespace):
            await host.content.abort(namespace, status.ref)
        for info in host.content.list(namespace):
            with suppress(NotFound):  # or it was collected meanwhile
                await host.content.delete(namespace, info.digest)


def is_unclear(end: str) -> bool:
    """Whether an end is an error that does not say which image or host it is about, or says more
    than it should."""
    if end in ("", RIGHT, CANCELLED):
        return False
    secret = SECRET in end or BASIC.split()[1] in end
    return secret or not ("127.0.0.1:" in end or "localhost:" in end or "sha256:" in end)


async def credentials(_: str) -> Credentials:
    return Credentials(username=USER, secret=SECRET)


async def silent(_: Progress) -> None:
    await trio.lowlevel.checkpoint()


def left_over(host: Host) -> list[str]:
    """What is left when all runs have ended."""
    problems: list[str] = []
    folder = host.config.root / "content/ingest"
    if left := list(folder.iterdir()):
        problems.append(f"{len(left)} ingests are left on the disk")
    for node in host.tree().children:
        if node.name in ("fetches", "ingests") and node.children:
            problems.append(f"{node.name}: {len(node.children)} actors are left")
    problems += [f"an actor fell: {report}" for report in host.crashes.reports()]
    return problems


@asynccontextmanager
async def slots(base: Path, found: Found, count: int) -> AsyncGenerator[Sequence[Slot]]:
    """A registry, and one host for all runs."""
    settings = embedded(base / "root", base / "state", SETTINGS)
    with registry(base / "registry") as server:
        try:
            async with open_host(settings) as host, trio.open_nursery() as nursery:
                made: list[Slot] = []
                for number in range(count):
                    proxy = await FaultProxy.listen(
                        nursery, server.authority, demands_credentials=True
                    )
                    namespace = f"slot-{number}"
                    images = images_of(number)
                    for place, image in enumerate(images):
                        name = f"{namespace}/image-{place}"
                        await trio.to_thread.run_sync(upload, server.authority, name, "1", image)
                    made.append(
                        Slot(
                            host=host, proxy=proxy, namespace=namespace, images=images, found=found
                        )
                    )
                yield made
                nursery.cancel_scope.cancel()
        finally:
            teardown(str(base / "state"))


def images_of(slot: int) -> Sequence[Made]:
    """One with an index, the others without; no slot has bytes of another's."""
    dice = Random(slot)
    return [
        make(dice, sizes, architectures=("amd64", "arm64")[: 1 + (number == 1)])
        for number, sizes in enumerate(LAYERS)
    ]


async def pulls(
    base: Path, seed: int, runs: Sequence[int], draw: Callable[[int, int], Plan] = Plan.draw
) -> Found:
    """These runs, some at a time."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    found = Found()
    async with slots(base, found, min(SLOTS, len(runs))) as made:
        waiting = iter(runs)

        async def work(slot: Slot) -> None:
            for run in waiting:
                await slot.run(draw(seed, run))

        async with trio.open_nursery() as nursery:
            for slot in made:
                nursery.start_soon(work, slot)
        found.problems += left_over(made[0].host)
    return found


async def shared_out(seed: int, runs: int, processes: int) -> Found:
    """The runs by several processes of this command, each with a host and a registry of its own."""
    found = Found()

    async def share(number: int) -> None:
        words = ["--runs", str(runs), "--seed", str(seed), "--share", f"{number}/{processes}"]
        done = await trio.run_process(
            [sys.executable, __file__, *words], capture_stdout=True, check=False
        )
        lines = bytes(done.stdout).decode().splitlines()
        if not lines or not lines[-1].startswith("{"):
            found.problems.append(f"share {number} ended with {done.returncode}: {lines[-3:]}")
            return
        told = json.loads(lines[-1])
        found.ends.update(told["ends"])
        found.faults.update(told["faults"])
        found.problems.extend(told["problems"])

    async with trio.open_nursery() as nursery:
        for number in range(processes):
            nursery.start_soon(share, number)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", type=int, default=None, help="this run alone")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--share", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = secrets.randbelow(2**32) if given.seed is None else given.seed
    if given.share:
        first, _, step = given.share.partition("/")
        found = alone(seed, range(int(first), given.runs, int(step)))
        print(json.dumps(vars(found)))
        return 0
    print(f"seed {seed}", flush=True)
    began_s = time.monotonic()
    if given.only is not None:
        found = alone(seed, [given.only])
    else:
        found = trio.run(shared_out, seed, given.runs, given.processes)
    print(f"{found}\n{len(found.problems)} problems in {time.monotonic() - began_s:.0f} s")
    for problem in found.problems[:20]:
        print(f"  {problem}")
    return 1 if found.problems else 0


def alone(seed: int, runs: Sequence[int]) -> Found:
    """The runs in this process."""
    with tempfile.TemporaryDirectory(prefix="faults-") as base:
        return trio.run(pulls, Path(base), seed, runs)


if __name__ == "__main__":
    sys.exit(main())
