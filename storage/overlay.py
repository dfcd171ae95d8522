"""Snapshots as overlayfs layers: each holds only what it changed.

    snapshots/<id>/fs      the layer: the upper directory while active, a lower one once committed
    snapshots/<id>/work    the kernel's own, while active

A snapshot without a parent is mounted as a bind of its layer, and so is a view of a single
layer: overlayfs needs two. The options and their order are containerd's.
"""

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import trio

from ..actors import failpoints
from ..actors.errors import FailedPrecondition
from .mounts import Mount, detached, escape_path
from .snapshotter import Kind

_INDEX = Path("/sys/module/overlay/parameters/index")


class Overlay:
    """The driver. `user_attributes` is for a daemon inside a user namespace."""

    name = "overlayfs"

    def __init__(self, *, index_off: bool = True, user_attributes: bool = False) -> None:
        self._options = (
            *(("index=off",) if index_off else ()),
            *(("userxattr",) if user_attributes else ()),
        )

    @classmethod
    async def probe(cls, root: Path) -> "Overlay | FailedPrecondition":
        """The driver fit for this directory, or why overlayfs does not work there.

        In a thread: a worker process would take longer to start than everything else at boot.
        """
        reason, user_attributes = await trio.to_thread.run_sync(_try_overlay, root / "probe")
        if reason:
            return FailedPrecondition(f"overlayfs on {root}: {reason}: skip plugin")
        index_off = await trio.to_thread.run_sync(_INDEX.exists)
        return cls(index_off=index_off, user_attributes=user_attributes)

    async def make(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> None:
        """Make the directories of a new snapshot."""
        await trio.to_thread.run_sync(self._make, directory, kind, parents)

    def _make(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> None:
        failpoints.reach("snapshot.make.mkdir")
        directory.mkdir(mode=0o700)
        failpoints.passed("snapshot.make.made")
        upper = directory / "fs"
        failpoints.reach("snapshot.make.upper")
        upper.mkdir()
        failpoints.passed("snapshot.make.upper_made")
        mode = 0o755
        if parents:
            # The upper directory is the root that a container sees.
            status = os.stat(parents[0] / "fs")
            os.chown(upper, status.st_uid, status.st_gid)
            mode = stat.S_IMODE(status.st_mode)
        upper.chmod(mode)
        if kind is Kind.ACTIVE:
            failpoints.reach("snapshot.make.work")
            (directory / "work").mkdir(mode=0o711)
            failpoints.passed("snapshot.make.work_made")

    def content(self, directory: Path) -> Path:
        """What a snapshot itself takes on the disk."""
        return directory / "fs"

    def mounts(self, directory: Path, kind: Kind, parents: Sequence[Path]) -> Sequence[Mount]:
        """How to see the snapshot; the nearest parent comes first."""
        lowers = [parent / "fs" for parent in parents]
        upper = directory / "fs"
        if not lowers:
            return [_bind(upper, "rw" if kind is Kind.ACTIVE else "ro")]
        if kind is Kind.ACTIVE:
            own: tuple[str, ...] = (
                f"workdir={_escaped(directory / 'work')}",
                f"upperdir={_escaped(upper)}",
            )
        elif len(lowers) == 1:
            return [_bind(lowers[0], "ro")]
        else:
            own = ()
        options = (*self._options, *own, "lowerdir=" + ":".join(map(_escaped, lowers)))
        return [Mount(type="overlay", source="overlay", options=options)]


def _try_overlay(root: Path) -> tuple[str, bool]:
    """Mount one in a new directory: why it does not work, and whether it needs `userxattr`."""
    for name in ("lower", "upper", "work"):
        (root / name).mkdir(parents=True, exist_ok=True)
    options: tuple[str, ...] = (
        f"workdir={_escaped(root / 'work')}",
        f"upperdir={_escaped(root / 'upper')}",
        f"lowerdir={_escaped(root / 'lower')}",
    )
    # Inside a user namespace overlayfs keeps its marks in user.*, if it is told to.
    user_attributes = not _has_trusted(root / "upper")
    if user_attributes:
        options = ("userxattr", *options)
    reason = ""
    try:
        with detached([Mount(type="overlay", source="overlay", options=options)]) as fd:
            os.mkdir("probe", dir_fd=fd)
    except OSError as error:
        reason = str(error)
    shutil.rmtree(root)
    return reason, user_attributes


def _has_trusted(path: Path) -> bool:
    try:
        os.setxattr(path, "trusted.overlay.probe", b"y")
    except OSError:
        return False
    return True


def _escaped(path: Path) -> str:
    return escape_path(str(path))


def _bind(source: Path, access: str) -> Mount:
    return Mount(type="bind", source=str(source), options=(access, "rbind"))
