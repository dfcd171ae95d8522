"""Fetches: the blobs that are on their way from registries, each once however many want it.

    await fetches.fetch("default", layer, source, lease, tell)     the blob is here, and held

Within a namespace all who want a blob share one fetch. Another namespace that is given what its
neighbours have waits for the neighbour's; with content_sharing "isolated" it fetches its own, and
cannot tell what others have.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from ...actors.errors import Unavailable
from ...actors.exits import ActorExited
from ...actors.reference import Ref
from ..content import ContentStore
from ..descriptor import Descriptor
from .download import Course, Source
from .fetch import Claim, FetchActor, FetchOrder, Join
from .limits import Meter, PullLimits

# On a namespace: so many bytes a second may all its pulls together bring.
RATE_LABEL = "io.holdfast/pull.bytes-per-second"
TOLD_EVERY_S = 0.25
# So often may the actor of a fetch fall before its pull does.
FALLS_MAX = 3

Tell = Callable[[str, int], Awaitable[None]]
"""Is told an event and how many bytes are here."""
Spawn = Callable[[FetchOrder], Awaitable[Ref[Any]]]


@dataclass(frozen=True, slots=True)
class _Running:
    ref: Ref[Any]
    course: Course
    metered: bool


class Fetches:
    """The verbs. Belongs to the loop it is used in."""

    def __init__(
        self, content: ContentStore, limits: PullLimits, spawn: Spawn = FetchActor.spawn
    ) -> None:
        self._content = content
        self.limits = limits
        self._spawn = spawn
        # In the order of their starts: who waits for a neighbour waits for an earlier one.
        self._running: dict[tuple[str, str], _Running] = {}
        self._starting = trio.Lock()
        self._meters: dict[str, Meter] = {}

    def meters(self, namespace: str, bytes_per_s: int = 0) -> list[Meter]:
        """What meters a pull that asks for this rate: its own meter, and the namespace's."""
        asked = [rate for rate in (bytes_per_s, self.limits.bytes_per_s) if rate]
        rate = self.limits.namespace_bytes_per_s
        record = self._content.store.get("namespace", "", namespace)
        label = "" if record is None else record["labels"].get(RATE_LABEL, "")
        if label.isascii() and label.isdigit():
            rate = min(int(label), rate) if int(label) and rate else int(label) or rate
        shared = self._meters.setdefault(namespace, Meter(rate))
        shared.bytes_per_s = rate
        return [Meter(min(asked, default=0)), shared]

    async def fetch(
        self, namespace: str, target: Descriptor, source: Source, lease: str, tell: Tell
    ) -> None:
        """Returns when the namespace has the blob, verified, and the lease holds it."""
        content, digest = self._content, target.digest
        if content.has(namespace, digest) and await content.hold(namespace, digest, lease):
            await tell("exists", target.size)
            return
        for _ in range(FALLS_MAX):
            claim = Claim(source=source, lease=lease)
            try:
                course = await self._claim(namespace, target, claim)
                await _follow(claim, course, tell)
            finally:
                claim.left.set()
            if claim.refusal is not None:
                raise claim.refusal
            # Another's lease may have held it, and be over by now.
            if claim.brought and await content.hold(namespace, digest, lease):
                await tell("complete", target.size)
                return
        raise Unavailable(
            f"{source.registry.remote.text}: {digest}: its fetch was ended: unavailable"
        )

    async def _claim(self, namespace: str, target: Descriptor, claim: Claim) -> Course:
        """Put the claim where the blob is fetched, or begin to fetch it."""
        key = (namespace, target.digest)
        async with self._starting:
            running = self._running.get(key)
            if running is not None:
                try:
                    await running.ref.call(Join(claim=claim), timeout_s=None)
                    return running.course
                except ActorExited:
                    pass  # it ended meanwhile
            course = Course()
            order = FetchOrder(
                content=self._content,
                namespace=namespace,
                target=target,
                limits=self.limits,
                claim=claim,
                course=course,
                neighbour=partial(self._neighbour, key, course),
                ended=partial(self._ended, key, course),
            )
            ref = await self._spawn(order)
            if not course.over.is_set():
                metered = any(meter.bytes_per_s for meter in claim.source.meters)
                self._running.pop(key, None)
                self._running[key] = _Running(ref, course, metered)
            return course

    def _ended(self, key: tuple[str, str], course: Course) -> None:
        running = self._running.get(key)
        if running is not None and running.course is course:
            del self._running[key]

    def _neighbour(self, key: tuple[str, str], own: Course) -> Course | None:
        """An earlier fetch of the same for a namespace that shares; a metered one is too slow."""
        for (namespace, digest), running in self._running.items():
            if running.course is own:
                break
            other = digest == key[1] and namespace != key[0]
            if other and not running.metered and self._content.shares(namespace):
                return running.course
        return None


async def _follow(claim: Claim, course: Course, tell: Tell) -> None:
    """Tell how far it is until the claim is settled."""
    told: tuple[str, int] | None = None
    while not claim.settled.is_set():
        now = ("waiting" if course.waiting else "downloading", course.got)
        if now != told:
            told = now
            await tell(*now)
        with trio.move_on_after(TOLD_EVERY_S):
            await claim.settled.wait()
