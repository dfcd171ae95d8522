"""Cgroups: where a container's are, and what can be done to all that is in them.

A host has one of three layouts: a tree per controller (legacy), one tree for all (unified), or
trees per controller beside a unified one (hybrid). A container's cgroups are a map from a
controller's name ("" for the unified tree) to a directory. A cgroup that a container shares with
us is never in the map: killing or freezing it would be our own end.

Standard library alone: the fork server preloads this file.
"""

import errno
import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Final

from ..actors.errors import NotFound
from . import files, procfs

UNIFIED_KEY: Final = ""
HYBRID_MOUNT: Final = "/sys/fs/cgroup/unified"

Directories = Mapping[str, str]


class Layout(Enum):
    """How the host's cgroups are laid out."""

    LEGACY = "legacy"
    HYBRID = "hybrid"
    UNIFIED = "unified"


def hierarchies(mountinfo: str) -> dict[str, tuple[str, str]]:
    """Controller -> (mount point, the cgroup that is shown there), from /proc/PID/mountinfo."""
    found: dict[str, tuple[str, str]] = {}
    for line in mountinfo.splitlines():
        if " - cgroup" not in line:
            continue
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, point = (_unescaped(field) for field in mount.split(" ")[3:5])
        keys = [UNIFIED_KEY] if kind == "cgroup2" else options.split(",")
        for key in keys:
            # The first is the lowest: what a container mounted over it is not what we mean.
            if key not in ("rw", "ro"):
                found.setdefault(key, (point, root))
    return found


def layout() -> Layout:
    """The host's layout, as this process sees it."""
    keys = hierarchies(files.text("/proc/self/mountinfo")).keys()
    if UNIFIED_KEY not in keys:
        return Layout.LEGACY
    return Layout.UNIFIED if len(keys) == 1 else Layout.HYBRID


def directories(pid: int) -> dict[str, str]:
    """The cgroups of a process that are not also ours; empty when it is gone."""
    mounted = hierarchies(files.text("/proc/self/mountinfo"))
    ours = procfs.cgroup_paths(os.getpid())
    found: dict[str, str] = {}
    for keys, path in procfs.cgroup_paths(pid).items():
        if path == "/" or path == ours.get(keys):
            continue
        for key in keys.split(","):
            if key in mounted:
                point, root = mounted[key]
                below = path if root == "/" else path.removeprefix(root)
                found[key] = point + below.rstrip("/")
    return found


def join(name: str, pid: int) -> list[str]:
    """Moves a process into a cgroup, by its name in each tree that has it; where it was before.

    NotFound when no tree has one of that name.
    """
    mounted = hierarchies(files.text("/proc/self/mountinfo"))
    before = {
        key: path for keys, path in procfs.cgroup_paths(pid).items() for key in keys.split(",")
    }
    joined: list[str] = []
    for key, (point, root) in mounted.items():
        directory = f"{point}/{name.strip('/')}"
        if not os.path.isdir(directory):
            continue
        _write(directory, "cgroup.procs", f"{pid}")
        path = before.get(key, "/")
        joined.append(point + (path if root == "/" else path.removeprefix(root)))
    if not joined:
        raise NotFound(f"cgroup {name}: not found")
    return joined


def leave(before: Sequence[str], pid: int) -> None:
    """Moves a process back to where it was before `join`."""
    for directory in before:
        _write(directory, "cgroup.procs", f"{pid}")


def subtree(directory: str) -> Iterator[str]:
    """A cgroup and those below it, the deepest first."""
    for path, _, _ in os.walk(directory, topdown=False):
        yield path


def pids(directories: Directories) -> list[int]:
    """Every process in the cgroups, those below them too."""
    directory = _process_directory(directories)
    found: list[int] = []
    for path in subtree(directory) if directory is not None else ():
        found += [int(word) for word in _text(path, "cgroup.procs").split()]
    return found


def kill(directories: Directories, number: int) -> int:
    """Sends a signal to every process in the cgroups; gives how many there were.

    SIGKILL reaches those too that are born meanwhile, as far as one pass can: call it until 0.
    """
    found = pids(directories)
    unified = directories.get(UNIFIED_KEY)
    if found and number == signal.SIGKILL and unified is not None:
        try:
            _write(unified, "cgroup.kill", "1")
            return len(found)
        except OSError:
            pass  # before Linux 5.14
    for pid in found:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    return len(found)


def can_freeze(directories: Directories) -> bool:
    """Whether `set_frozen` has a cgroup to work on."""
    return _freezer(directories) is not None


def set_frozen(directories: Directories, frozen: bool) -> None:
    """Asks the kernel to freeze or thaw; it is done when `is_frozen` says so."""
    freezer = _freezer(directories)
    assert freezer is not None
    directory, unified = freezer
    if unified:
        _write(directory, "cgroup.freeze", "1" if frozen else "0")
    else:
        _write(directory, "freezer.state", "FROZEN" if frozen else "THAWED")


def is_frozen(directories: Directories) -> bool:
    """Whether every process is frozen. A v1 cgroup on its way (FREEZING) is not."""
    freezer = _freezer(directories)
    if freezer is None:
        return False
    directory, unified = freezer
    if unified:
        return "frozen 1" in _text(directory, "cgroup.events").splitlines()
    return _text(directory, "freezer.state").strip() == "FROZEN"


def remove(directories: Directories) -> list[str]:
    """Removes the cgroups and those below; gives those that still hold a process."""
    busy: list[str] = []
    for directory in sorted(set(directories.values())):
        if not _rmdir(directory):  # most have none below them
            busy += [path for path in subtree(directory) if not _rmdir(path)]
    return busy


def _rmdir(directory: str) -> bool:
    """Removes one cgroup; False while something is in it."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            raise
        return False
    return True


def out_of_memory_kills(directories: Directories) -> int:
    """How often the kernel killed for want of memory in these cgroups."""
    if UNIFIED_KEY in directories and "memory" not in directories:
        text = _text(directories[UNIFIED_KEY], "memory.events")
    elif "memory" in directories:
        text = _text(directories["memory"], "memory.oom_control")
    else:
        return 0
    return int(flat(text).get("oom_kill", 0))


def watch_out_of_memory(directories: Directories) -> tuple[int, bool] | None:
    """A descriptor that becomes ready when memory ran out, and whether it is an eventfd.

    An eventfd is ready for reading; the other is a memory.events, ready with EPOLLPRI. None where
    the container has no memory cgroup of its own.
    """
    if "memory" in directories:
        directory = directories["memory"]
        event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
            try:
                _write(directory, "cgroup.event_control", f"{event} {control}")
            finally:
                os.close(control)
        except OSError:
            os.close(event)
            return None
        return event, True
    if UNIFIED_KEY in directories:
        path = f"{directories[UNIFIED_KEY]}/memory.events"
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
        except FileNotFoundError:  # the memory controller is not on for it
            return None
    return None


def flat(text: str) -> dict[str, int]:
    """A flat keyed file: lines of a name and a number."""
    pairs = (line.split(" ", 1) for line in text.splitlines() if " " in line)
    return {key: number(value) for key, value in pairs}


def number(text: str, unlimited: int = 2**64 - 1) -> int:
    """A number of a cgroup file; "max" and what cannot be read have fixed values."""
    text = text.strip()
    if text == "max":
        return unlimited
    return int(text) if text.lstrip("-").isdigit() else 0


def _process_directory(directories: Directories) -> str | None:
    for key in (UNIFIED_KEY, "freezer", "pids", "memory", "devices"):
        if key in directories:
            return directories[key]
    return next(iter(directories.values()), None)


def _freezer(directories: Directories) -> tuple[str, bool] | None:
    if "freezer" in directories:
        return directories["freezer"], False
    if UNIFIED_KEY in directories:
        return directories[UNIFIED_KEY], True
    return None


def _text(directory: str, name: str) -> str:
    try:
        return files.text(f"{directory}/{name}")
    except OSError:  # gone, or not offered by this kernel
        return ""


def _write(directory: str, name: str, text: str) -> None:
    descriptor = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
