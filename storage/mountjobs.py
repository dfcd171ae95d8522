"""What a worker does for an activation: make its mounts, look whether they stand, take them off.

    home/<id>/1, 2, ...     where the mounts stand, the topmost first: a directory with a mount on
                            it, or for a loop device a symbolic link to it

So the directory alone says what is to be taken off, and in which order; no record is needed.
"""

import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..actors import failpoints
from ..actors.errors import (
    FailedPrecondition,
    InvalidArgument,
    Unimplemented,
    Unknown,
)
from . import loop, syscalls
from .labels import quoted
from .mountinfo import standing_mounts
from .mountplan import LOOP
from .mounts import Mount, mount_all, unmount_all

Job = Mapping[str, Any]

MKFS_WITHIN_S = 60.0
# A directory of this mode is one that is not yet finished.
UNFINISHED = 0o000
PARTIAL = ".partial"
_BELOW = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS


def do_activate(job: Job) -> Mapping[str, Any]:
    """Make every mount, in order; when one fails all are taken off again."""
    directory = Path(job["directory"])
    directory.mkdir(mode=0o700)
    failpoints.passed("mount.activate.made")
    mounted_at: list[int] = []
    try:
        for step in job["steps"]:
            _make(step["makings"], job["roots"])
            _mount(Mount.from_record(step["mount"]), step["point"])
            failpoints.passed("mount.activate.mounted")
            mounted_at.append(time.time_ns())
        _make(job["makings"], job["roots"])
    except BaseException:
        take_off(directory)
        raise
    return {"mounted_at": mounted_at}


def do_deactivate(job: Job) -> Mapping[str, Any]:
    """Take everything off; what is gone already is no error."""
    take_off(Path(job["directory"]))
    return {}


def do_standing(job: Job) -> Mapping[str, Any]:
    """Which of the directories still have a mount, or a device of their own, at each point."""
    points = mount_points()
    return {"standing": [_stands(each, points) for each in job["points"]]}


def _stands(points: Sequence[str], mounted: frozenset[str]) -> bool:
    for point in points:
        parent = os.path.realpath(os.path.dirname(point))
        try:
            device = os.readlink(point)
        except OSError:
            if os.path.join(parent, os.path.basename(point)) not in mounted:
                return False
        else:
            if not loop.bears(device, loop.tag_of(point)):
                return False
    return True


def mount_points() -> frozenset[str]:
    """Every mount point that this process sees."""
    return frozenset(each.point for each in standing_mounts())


def take_off(directory: Path) -> None:
    """Take off what stands in the directory, the topmost first, and remove it."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return
    for name in sorted((name for name in names if name.isdecimal()), key=int):
        point = f"{directory}/{name}"
        try:
            device = os.readlink(point)
        except OSError:
            unmount_all(point)
            failpoints.passed("mount.deactivate.unmounted")
            with suppress(FileNotFoundError):
                os.rmdir(point)
        else:
            loop.release(device, loop.tag_of(point))
            failpoints.passed("mount.deactivate.released")
            with suppress(FileNotFoundError):
                os.unlink(point)
    try:
        directory.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedPrecondition(f"{directory} holds what is not ours: {error}") from error


def _mount(mount: Mount, point: str) -> None:
    if mount.type == LOOP:
        tag = loop.tag_of(point)
        with loop.attached(mount.source, tag, read_only="ro" in mount.options) as device:
            # First the link, then the device's own life: whoever finds the link finds the device.
            os.symlink(device, point)
            failpoints.passed("mount.loop.linked")
            loop.keep(device)
        return
    os.mkdir(point, 0o700)
    mount_all([mount], point)


def _make(makings: Sequence[Mapping[str, Any]], roots: Sequence[str]) -> None:
    for making in makings:
        MAKERS[making["make"]](making, roots)


def _parent_of(path: str, roots: Sequence[str], what: str) -> tuple[int, str]:
    """A descriptor of the directory that shall hold `path`, and the name in it. Nothing outside
    the roots is reached, by no link either."""
    for root in sorted(roots, key=len, reverse=True):
        inside = path.removeprefix(root.rstrip("/") + "/")
        parent, _, name = inside.rpartition("/")
        if inside == path or name in ("", ".", ".."):
            continue
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY
            return syscalls.openat2(root_fd, parent or ".", flags, _BELOW), name
        finally:
            os.close(root_fd)
    raise InvalidArgument(f"{what} {quoted(path)} is not below an allowed root: invalid argument")


def _make_directory(making: Mapping[str, Any], roots: Sequence[str]) -> None:
    path, mode = making["path"], making["mode"]
    parent_fd, name = _parent_of(path, roots, "mkdir")
    try:
        try:
            os.mkdir(name, UNFINISHED, dir_fd=parent_fd)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                raise FailedPrecondition(
                    f"mkdir target {quoted(path)} exists and is not a directory"
                ) from None
            if stat.S_IMODE(found.st_mode) == mode != UNFINISHED:
                return
            if stat.S_IMODE(found.st_mode) != UNFINISHED:
                raise Unimplemented(
                    "chmod not supported yet for mkdir handler: not implemented"
                ) from None
        os.chown(name, making["uid"], making["gid"], dir_fd=parent_fd, follow_symlinks=False)
        # The mode last: it says that the directory is finished.
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
    finally:
        os.close(parent_fd)


def _make_filesystem(making: Mapping[str, Any], roots: Sequence[str]) -> None:
    path, kind = making["path"], making["kind"]
    parent_fd, name = _parent_of(path, roots, "mkfs")
    try:
        try:
            found = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(found.st_mode):
                raise FailedPrecondition(
                    f"mkfs backing file {quoted(path)} exists and is not a regular file"
                )
            return
        program = shutil.which(f"mkfs.{kind}", path="/usr/sbin:/sbin:/usr/bin:/bin")
        if program is None:
            raise FailedPrecondition(f"this host has no mkfs.{kind}")
        # Under its name only once it is whole: a file that is there is taken as it is.
        partial = name + PARTIAL
        # A file of its own each time: the formatter of a worker that died may still be writing.
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=parent_fd)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(partial, flags, 0o640, dir_fd=parent_fd)
        try:
            os.ftruncate(fd, making["size_bytes"])
            _format(program, kind, making["uuid"], fd)
            os.fsync(fd)
        except BaseException:
            os.unlink(partial, dir_fd=parent_fd)
            raise
        finally:
            os.close(fd)
        failpoints.passed("mount.mkfs.formatted")
        os.rename(partial, name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        os.fsync(parent_fd)
    finally:
        os.close(parent_fd)


def _format(program: str, kind: str, uuid: str, fd: int) -> None:
    if kind == "xfs":
        words = ["-q", *(["-m", f"uuid={uuid}"] if uuid else [])]
    else:
        words = ["-q", "-F", *(["-U", uuid] if uuid else [])]
    done = subprocess.run(
        [program, *words, f"/proc/self/fd/{fd}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[fd],
        timeout=MKFS_WITHIN_S,
        check=False,
    )
    if done.returncode != 0:
        said = done.stdout.decode(errors="replace").strip()
        raise Unknown(f"{os.path.basename(program)} failed: {said[-400:]}")


MAKERS: Mapping[str, Callable[[Mapping[str, Any], Sequence[str]], None]] = {
    "directory": _make_directory,
    "filesystem": _make_filesystem,
}
