"""The store's place in the tree. It opens before the tree and closes after it."""

from ..actors.actor import Actor
from .store import Store


class StoreKeeper(Actor):
    """Turns the store's fault into a fall, which the supervisors above answer."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def on_start(self) -> None:
        self.spawn_task(self._watch)

    async def _watch(self) -> None:
        raise await self._store.wait_fault()
