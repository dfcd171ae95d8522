"""What a daemon's containers may leave on the host, looked at from outside by means of our own.

Everything belongs to one daemon by its mark, its directories or its cgroup group.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import trio

from .containers import CGROUP_PARENT
from .daemon import Daemon, mounts_below
from .history import Left
from .patience import PATIENCE
from .processes import Role

CGROUP_ROOT = Path("/sys/fs/cgroup")
QUIET_WITHIN_S = 10.0 * PATIENCE
LASTING_MOUNTS = ("vault",)
"""Below the state directory: stands as long as the daemon's pins do."""
EXPECTED_ROLES = (Role.DAEMON, Role.FORK_SERVER, Role.SPARE, Role.WORKER)


async def after_quiet(daemon: Daemon, group: str) -> list[Left]:
    """What is left when nothing changes any more; nothing, once all is gone."""
    left = list(look(daemon, group))
    with trio.move_on_after(QUIET_WITHIN_S):
        while left:
            await trio.sleep(0.1)
            left = list(look(daemon, group))
    return left


def look(daemon: Daemon, group: str) -> Iterator[Left]:
    """What is there now of containers, while none should be."""
    for target in mounts_below(daemon.base / "state"):
        place = Path(target).relative_to(daemon.base / "state")
        if place.parts[0] not in LASTING_MOUNTS:
            yield Left(kind="mount", what=target)
    for path in cgroups(group):
        yield Left(kind="cgroup", what=str(path))
    for found in daemon.processes():
        if found.role not in EXPECTED_ROLES:
            yield Left(kind="process", what=f"{found.role} {found.pid}")
    tasks = daemon.base / "state/tasks"
    for folder in tasks.glob("*/*"):
        inside = sorted(path.name for path in folder.glob("*"))
        yield Left(kind="file", what=f"{folder} with {', '.join(inside)}")


def cgroups(group: str) -> list[Path]:
    """The containers' cgroups in every hierarchy, the deepest last."""
    found: list[Path] = []
    for root in (CGROUP_ROOT, *(path for path in CGROUP_ROOT.glob("*") if path.is_dir())):
        top = root / CGROUP_PARENT / group
        found += [path for path in top.glob("**/*") if path.is_dir()] if top.is_dir() else []
    return sorted(set(found))


def remove_cgroups(group: str) -> None:
    """End whatever lives in the group's cgroups, and remove them."""
    for path in reversed(cgroups(group)):
        _end_all_in(path)
        _rmdir(path)
    for root in (CGROUP_ROOT, *(path for path in CGROUP_ROOT.glob("*") if path.is_dir())):
        _rmdir(root / CGROUP_PARENT / group)
        _rmdir(root / CGROUP_PARENT)


def _end_all_in(path: Path) -> None:
    freezer = path / "freezer.state"
    try:
        if freezer.exists():
            freezer.write_text("THAWED")
        for pid in (path / "cgroup.procs").read_text().split():
            os.kill(int(pid), 9)
    except OSError:
        pass


def _rmdir(path: Path) -> None:
    try:
        path.rmdir()
    except OSError:
        pass  # not there, or another group's
