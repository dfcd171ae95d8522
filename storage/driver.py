"""What differs between snapshotters: how a snapshot lies on the disk and how it is mounted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from .mounts import Mount
from .snapshotter import Kind


class Driver(Protocol):
    """How snapshots lie on the disk. Directories are `snapshots/<id>`; the nearest parent's
    comes first."""

    name: str

    async def make(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> None:
        """Make the directory of a new snapshot; half of it may stay when this fails."""
        ...

    def content(self, directory: Path) -> Path:
        """The tree whose size is the snapshot's usage."""
        ...

    def mounts(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> Sequence[Mount]:
        """The mounts of an active snapshot or a view."""
        ...
