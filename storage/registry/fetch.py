"""The fetch actor: one blob of a registry on its way in, for all who want it at the moment.

    FETCHING --whole, verified--> gone, the blob is in the store
       +--its claim refused--> FETCHING for the next claim
       +--the claim left------> FETCHING for the next claim, from the byte where it is
       +--no claim is left----> gone, the ingest waits for the next pull

Terms. A *claim* is one pull's wish for the blob, with the registry, the credentials and the lease
of that pull; its client may go away at any time. One claim's registry is asked, the others wait
for what comes of it. The *offset* is the content store's: that of an ingest under the ref that
every client uses for the blob. No lease holds it: one with bytes is kept for a day, whatever
becomes of the pull.

Invariants: (1) what is committed has the size and the digest that were asked for. (2) Bytes that
turn out wrong are not kept; they are asked for once more, by one connection, and then it is the
claim's refusal. (3) Each claim is settled, however the actor ends.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from ...actors.actor import Actor
from ...actors.errors import AlreadyExists, FailedPrecondition, NotFound, Refusal, Unavailable
from ...actors.exits import NORMAL, ActorExited, StopActor
from ...actors.message import Request
from ..content import ContentStore
from ..descriptor import Descriptor, is_config, is_index, is_layer, is_manifest
from ..ingest import Ingest
from .download import PAUSE_S, Course, Download, Source, TooMuch
from .limits import PullLimits
from .sources import SOURCE_LABEL

# Who else has the ref open, as a client that pulls by itself, has this long.
BUSY_WITHIN_S = 600.0
# So often may an ingest end under the fetch, by a fault or by somebody's abort.
ENDS_MAX = 3
# A neighbour that brings the same blob is waited for while so much comes within the stall limit.
NEIGHBOUR_BYTES = 256 << 10
LABEL_MAX = 60


@dataclass(slots=True, kw_only=True, eq=False)
class Claim:
    """One pull's wish for the blob. Settled with no `brought` and no `refusal`: the actor fell."""

    source: Source
    lease: str
    left: trio.Event = field(default_factory=trio.Event)
    settled: trio.Event = field(default_factory=trio.Event)
    brought: bool = False
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Join(Request[None]):
    """Sent by `Fetches`; answered at once, and settled later."""

    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOrder:
    """What a fetch is started with. `neighbour` finds a fetch of the same blob for a namespace that
    shares what it has, and `ended` is called once, when this one takes no more claims."""

    content: ContentStore
    namespace: str
    target: Descriptor
    limits: PullLimits
    claim: Claim
    course: Course
    neighbour: Callable[[], Course | None] = field(repr=False)
    ended: Callable[[], None] = field(repr=False)


class FetchActor(Actor):
    """See the top of this file."""

    mailbox_bound = 64

    def __init__(self, order: FetchOrder) -> None:
        super().__init__()
        self._order = order
        self._claims = [order.claim]
        self._over = False
        label = f"fetch:{order.namespace}/{order.target.digest}"
        self.label = label if len(label) <= LABEL_MAX else label[: LABEL_MAX - 1] + "…"

    def describe_state(self) -> str:
        """Which blob, and how far it is."""
        order = self._order
        done = f"{order.course.got} of {order.target.size} bytes"
        return f"{order.namespace} {order.target.digest}: {done}, {len(self._claims)} claims"

    async def on_start(self) -> None:
        """Begin at once."""
        self.spawn_task(self._run)

    def on_receive(self, message: Join) -> None:
        """Take one more claim; who comes too late is told of the end."""
        if self._over:
            raise StopActor(NORMAL)
        self._claims.append(message.claim)

    async def _run(self) -> None:
        brought = False
        try:
            while not brought and (claim := self._next_claim()) is not None:
                brought = await self._serve(claim)
        finally:
            self._over = True
            self._order.course.over.set()
            self._order.ended()
            for claim in self._claims:
                claim.brought = brought
                claim.settled.set()
        # Not where it falls: its fault is to be told.
        self.ref.shutdown()

    def _next_claim(self) -> Claim | None:
        self._claims = [claim for claim in self._claims if not claim.left.is_set()]
        return self._claims[0] if self._claims else None

    async def _serve(self, claim: Claim) -> bool:
        """Fetch with what the claim has, until it leaves; whether the blob is here."""
        brought = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, claim.left, nursery.cancel_scope)
            try:
                await self._fetch(claim)
                brought = True
            except Refusal as refusal:
                claim.refusal = refusal
            nursery.cancel_scope.cancel()
        if claim.refusal is not None:
            self._claims.remove(claim)
            claim.settled.set()
        return brought

    async def _fetch(self, claim: Claim) -> None:
        order = self._order
        wrong: Refusal | None = None
        ends = 0
        await self._wait_for_neighbour()
        while True:
            try:
                ingest = await self._open()
            except AlreadyExists:
                return
            async with ingest:
                try:
                    again = wrong is not None
                    if not (fault := await self._fill(ingest, claim, alone=again)):
                        return
                except Refusal as error:
                    ends += 1
                    if isinstance(error.__cause__, ActorExited) and ends < ENDS_MAX:
                        continue  # the ingest ended: it is opened anew, with what it had
                    if not order.course.got:
                        await ingest.abort()
                        await self._forget()
                    raise
                # The next one must not go on from it.
                await ingest.abort()
            await self._forget()
            if wrong is not None:
                raise fault
            wrong = fault
            order.course.got = 0

    async def _fill(
        self, ingest: Ingest, claim: Claim, *, alone: bool
    ) -> FailedPrecondition | None:
        """Bring the bytes and commit them; what is wrong with them."""
        order, target = self._order, self._order.target
        directory = order.content.ingest_path(order.namespace, ingest.ref)
        remote = claim.source.registry.remote
        download = Download(ingest, directory, claim.source, target, order.limits, order.course)
        try:
            await download.run(alone=alone)
        except TooMuch as error:
            return FailedPrecondition(f"{remote.text}: {target.digest}: {error}")
        found = (await ingest.state()).digest
        if found != target.digest:
            return FailedPrecondition(
                f"{remote.text}: unexpected commit digest {found}, expected {target.digest}:"
                " failed precondition"
            )
        labels = {SOURCE_LABEL + remote.host: remote.repository}
        try:
            await ingest.commit(target.size, target.digest, labels, lease=claim.lease)
        except AlreadyExists:
            pass  # another was faster
        return None

    async def _open(self) -> Ingest:
        """The ingest, once nobody else brings the same."""
        order = self._order
        begin = partial(
            order.content.open_ingest,
            order.namespace,
            ref_of(order.target),
            total=order.target.size,
            expected=order.target.digest,
        )
        with trio.move_on_after(BUSY_WITHIN_S):
            while True:
                try:
                    ingest = await begin()
                except Unavailable:
                    order.course.waiting = True
                    await trio.sleep(PAUSE_S)
                else:
                    order.course.waiting = False
                    return ingest
        return await begin()

    async def _forget(self) -> None:
        order = self._order
        try:
            await order.content.abort(order.namespace, ref_of(order.target))
        except NotFound:
            pass

    async def _wait_for_neighbour(self) -> None:
        """While another namespace brings the same and gets on well: it will be had from there."""
        order = self._order
        while (neighbour := order.neighbour()) is not None:
            got = neighbour.got
            with trio.move_on_after(order.limits.stall_s):
                await neighbour.over.wait()
            if not neighbour.over.is_set() and neighbour.got < got + NEIGHBOUR_BYTES:
                return


def ref_of(target: Descriptor) -> str:
    """Under which ref content is brought in: that of every client of containerd's."""
    kind = "unknown"
    if is_index(target.media_type):
        kind = "index"
    elif is_manifest(target.media_type):
        kind = "manifest"
    elif is_layer(target.media_type):
        kind = "layer"
    elif is_config(target.media_type):
        kind = "config"
    return f"{kind}-{target.digest}"


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
