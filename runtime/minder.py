"""The minder: an actor that looks at every shim, twice a second.

A shim that was killed is missed at once, by its connection. One that is stopped says nothing; here
it is seen, its reason shown, and at the next look it is replaced.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import trio

from ..actors.actor import Actor
from ..actors.reference import Ref
from ..storage.turns import Turns
from . import procfs
from .ground import Ground

LOOK_EVERY_S = 0.4


class Minder(Actor):
    """One for all the links of a host."""

    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self._ground = ground

    def on_start(self) -> None:
        """Begins to look."""
        self.spawn_task(self._look)

    def on_receive(self, message: Ref[Any]) -> None:
        """Nobody sends it anything."""

    async def _look(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY_S)
            await Turns().walk(self._look_at_each())

    def _look_at_each(self) -> Iterator[None]:
        stat = cache(procfs.stat)  # many links may have one shim
        for link in list(self._ground.links.values()):
            link.look(stat)
            yield
