"""Partitions: one kind of actor, several times, each key always served by the same one.

    buckets = Partitions("snapshots", 4)
    Tree("root", children=[buckets.tree(lambda i: dynamic(str(i))), ...])
    await start_child(buckets.at("sha256:..."), spec)

So a single supervisor or actor is no bottleneck, and its fall touches a part of the keys.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..actors.errors import InvalidArgument
from ..actors.reference import NameRef
from ..actors.system import System
from .spec import DEFAULT_INTENSITY, ChildSpec, Intensity, Strategy, Tree


@dataclass(frozen=True, slots=True)
class Partitions:
    """`count` actors that bear the names `name/0`, `name/1`, ..."""

    name: str
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidArgument(f"partitions {self.name}: {self.count} of them")

    def index(self, key: str | bytes) -> int:
        """Which partition serves a key: the same in every process, on every day."""
        data = key.encode() if isinstance(key, str) else key
        digest = hashlib.blake2b(data, digest_size=8).digest()
        return int.from_bytes(digest) % self.count

    def at(self, key: str | bytes) -> NameRef:
        """Whoever serves a key, across restarts."""
        return System.current().at(f"{self.name}/{self.index(key)}")

    def tree(
        self, make: Callable[[int], ChildSpec], intensity: Intensity = DEFAULT_INTENSITY
    ) -> Tree:
        """The supervisor of the partitions; `make` says how the i-th is started."""
        children = [replace(make(i), id=str(i), name=f"{self.name}/{i}") for i in range(self.count)]
        return Tree(self.name, Strategy.ONE_FOR_ONE, intensity, children)
