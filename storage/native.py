"""Snapshots as full copies: for filesystems that overlayfs cannot use.

    snapshots/<id>/fs      the whole tree

Blocks are shared with the parent where the filesystem can (reflinks), so that a copy costs its
inodes only.
"""

from collections.abc import Sequence
from pathlib import Path

import trio

from ..actors import failpoints
from .mounts import Mount
from .snapshotter import Kind
from .workers import Workers


class Native:
    """The driver."""

    name = "native"

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    async def make(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> None:
        """Make a new snapshot's tree: a copy of its parent's, unless it is only looked at."""
        await trio.to_thread.run_sync(self._make, directory)
        if parents and kind is Kind.ACTIVE:
            await self._workers.copy_tree(self.content(parents[0]), self.content(directory))

    def _make(self, directory: Path) -> None:
        failpoints.reach("snapshot.make.mkdir")
        directory.mkdir(mode=0o700)
        failpoints.passed("snapshot.make.made")
        tree = self.content(directory)
        failpoints.reach("snapshot.make.upper")
        tree.mkdir()
        failpoints.passed("snapshot.make.upper_made")
        tree.chmod(0o755)

    def content(self, directory: Path) -> Path:
        """What a snapshot itself takes on the disk."""
        return directory / "fs"

    def mounts(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> Sequence[Mount]:
        """How to see the snapshot; the nearest parent comes first."""
        if kind is Kind.ACTIVE or not parents:
            tree = self.content(directory)
        else:
            tree = self.content(parents[0])
        access = "rw" if kind is Kind.ACTIVE else "ro"
        return [Mount(type="bind", source=str(tree), options=("rbind", access))]
