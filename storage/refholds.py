"""Who has which ref open: an ingest is written by one at a time."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import trio

from ..actors.errors import Unavailable
from ..actors.reference import Ref
from .ingest import IngestActor

# A client that has just gone may not have been noticed yet: wait this long for its ref.
LOCK_WAIT_S = 0.5


@dataclass(slots=True)
class Hold:
    """Who has a ref open, since when, and the event of its release."""

    since_ns: int
    released: trio.Event = field(default_factory=trio.Event)
    actor: Ref[IngestActor] | None = None


class RefHolds:
    """The refs that are open, by namespace and ref."""

    def __init__(self) -> None:
        self._holds: dict[tuple[str, str], Hold] = {}

    def get(self, namespace: str, ref: str) -> Hold | None:
        """The hold on a ref, if it is open."""
        return self._holds.get((namespace, ref))

    async def take_when_free(self, namespace: str, ref: str) -> Hold:
        """The same as `take`, after a short wait for whoever has it."""
        with trio.move_on_after(LOCK_WAIT_S):
            while (hold := self.get(namespace, ref)) is not None:
                await hold.released.wait()
        return self.take(namespace, ref)

    def take(self, namespace: str, ref: str) -> Hold:
        """Hold a ref; `Unavailable` while another does."""
        held = self.get(namespace, ref)
        if held is not None:
            elapsed_s = (time.time_ns() - held.since_ns) / 1e9
            since = datetime.fromtimestamp(held.since_ns / 1e9, UTC)
            raise Unavailable(
                f"ref {namespace}/{ref} locked for {elapsed_s:.6f}s"
                f" (since {since:%Y-%m-%d %H:%M:%S.%f} +0000 UTC): unavailable"
            )
        hold = self._holds[namespace, ref] = Hold(time.time_ns())
        return hold

    def release(self, namespace: str, ref: str, hold: Hold) -> None:
        """Give up this hold; doing it twice is no harm."""
        if self.get(namespace, ref) is hold:
            del self._holds[namespace, ref]
            hold.released.set()
