"""Mounts as data, and the calls that make them.

A list of mounts is made in order, each on the same target, the last one on top. Options are
mount(8)'s words: those that are flags of the kernel become flags, the rest is handed to the
filesystem.

Everything here blocks. `detached` is the way to look into a mount without attaching it
anywhere: the kernel unmounts it when the descriptor is closed, also by the process's death,
so that it cannot leak. Nothing here ever stats a mountpoint: a dead filesystem below it would
hold the caller for ever.
"""

import errno
import os
import re
import resource
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

from ..actors.errors import FailedPrecondition, InvalidArgument, Unimplemented
from . import syscalls as sys


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount to be made: as containerd's type of that name, `target` below the root."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()

    def to_record(self) -> dict[str, object]:
        """As plain values, for a frame or the store."""
        return {
            "type": self.type,
            "source": self.source,
            "target": self.target,
            "options": list(self.options),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> "Mount":
        """What `to_record` gave."""
        options = cast("Sequence[object]", record["options"])
        return cls(
            type=str(record["type"]),
            source=str(record["source"]),
            target=str(record["target"]),
            options=tuple(str(option) for option in options),
        )


# Each word: (whether it clears, the flags).
FLAGS: Mapping[str, tuple[bool, int]] = {
    "async": (True, sys.MS_SYNCHRONOUS),
    "atime": (True, sys.MS_NOATIME),
    "bind": (False, sys.MS_BIND),
    "defaults": (False, 0),
    "dev": (True, sys.MS_NODEV),
    "diratime": (True, sys.MS_NODIRATIME),
    "dirsync": (False, sys.MS_DIRSYNC),
    "exec": (True, sys.MS_NOEXEC),
    "mand": (False, sys.MS_MANDLOCK),
    "noatime": (False, sys.MS_NOATIME),
    "nodev": (False, sys.MS_NODEV),
    "nodiratime": (False, sys.MS_NODIRATIME),
    "noexec": (False, sys.MS_NOEXEC),
    "nomand": (True, sys.MS_MANDLOCK),
    "norelatime": (True, sys.MS_RELATIME),
    "nostrictatime": (True, sys.MS_STRICTATIME),
    "nosuid": (False, sys.MS_NOSUID),
    "rbind": (False, sys.MS_BIND | sys.MS_REC),
    "relatime": (False, sys.MS_RELATIME),
    "remount": (False, sys.MS_REMOUNT),
    "ro": (False, sys.MS_RDONLY),
    "rw": (True, sys.MS_RDONLY),
    "strictatime": (False, sys.MS_STRICTATIME),
    "suid": (True, sys.MS_NOSUID),
    "sync": (False, sys.MS_SYNCHRONOUS),
}

PROPAGATION: Mapping[str, int] = {
    "private": sys.MS_PRIVATE,
    "rprivate": sys.MS_PRIVATE | sys.MS_REC,
    "shared": sys.MS_SHARED,
    "rshared": sys.MS_SHARED | sys.MS_REC,
    "slave": sys.MS_SLAVE,
    "rslave": sys.MS_SLAVE | sys.MS_REC,
    "unbindable": sys.MS_UNBINDABLE,
    "runbindable": sys.MS_UNBINDABLE | sys.MS_REC,
}

# mount(2) copies one page of options and drops the rest without a word.
OPTION_BYTES_MAX = resource.getpagesize() - 1

_SPECIAL = re.compile(r"[\\,:]")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PATHS = re.compile(r"(?:[^:\\]|\\.)+", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A mount's words sorted by who understands them."""

    flags: int
    propagation: tuple[int, ...]
    data: tuple[str, ...]


def parse_options(words: Sequence[str]) -> Options:
    """Sort the words; later ones win over earlier ones."""
    flags = 0
    propagation: list[int] = []
    data: list[str] = []
    for word in words:
        if "\0" in word:
            raise InvalidArgument("a mount option contains a NUL byte")
        if word in FLAGS:
            clears, bits = FLAGS[word]
            flags = flags & ~bits if clears else flags | bits
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word == "loop":
            raise Unimplemented("mount option loop: loop devices are not set up here")
        elif word and not word.startswith(("X-", "x-")):
            data.append(word)
    return Options(flags=flags, propagation=tuple(propagation), data=tuple(data))


def option(mount: Mount, key: str) -> str | None:
    """The value of `key=` among a mount's options."""
    prefix = key + "="
    for word in mount.options:
        if word.startswith(prefix):
            return word.removeprefix(prefix)
    return None


def escape_path(path: str) -> str:
    """A path as overlayfs wants it in an option: a comma would end it, a colon divide it."""
    return _SPECIAL.sub(r"\\\g<0>", path)


def split_paths(value: str) -> list[str]:
    """The plain paths of an overlay's option, divided by colons."""
    return [_ESCAPED.sub(r"\1", path) for path in _PATHS.findall(value)]


def overlay_layers(mount: Mount) -> tuple[str | None, list[str]]:
    """An overlay mount's upper directory and its lower ones, the topmost first."""
    upper = option(mount, "upperdir")
    return (
        None if upper is None else _ESCAPED.sub(r"\1", upper),
        split_paths(option(mount, "lowerdir") or ""),
    )


def layers_of(mount: Mount) -> list[str]:
    """The directories that a mount shows, the topmost first; none when it is no overlay or bind."""
    if mount.type == "overlay":
        upper, lowers = overlay_layers(mount)
        return lowers if upper is None else [upper, *lowers]
    return [mount.source] if parse_options(mount.options).flags & sys.MS_BIND else []


def read_only(mount: Mount) -> Mount:
    """The same view for reading alone: an overlay's upper directory becomes its topmost lower
    one, as whoever has it mounted may go on writing."""
    upper, lower = option(mount, "upperdir"), option(mount, "lowerdir")
    if mount.type != "overlay" or upper is None:
        return replace(mount, options=(*mount.options, "ro"))
    writers = ("upperdir=", "workdir=", "lowerdir=", "index=")
    kept = [w for w in mount.options if not w.startswith(writers) and w not in ("rw", "volatile")]
    return replace(mount, options=(*kept, "ro", f"lowerdir={upper}:{lower}"))


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Make each mount on `target`; when one fails those before it are taken off again."""
    done: list[str] = []
    try:
        for mount in mounts:
            path = target
            if mount.target:
                if ".." in mount.target.split("/"):
                    raise InvalidArgument(f"mount target {mount.target!r} leaves its root")
                path = os.path.join(target, mount.target.lstrip("/"))
            _mount_one(mount, path)
            done.append(path)
    except BaseException:
        for path in reversed(done):
            sys.umount2(path, sys.MNT_DETACH | sys.UMOUNT_NOFOLLOW)
        raise


def unmount_all(target: str) -> None:
    """Take every mount off `target`; it may have none, and need not exist."""
    while True:
        try:
            sys.umount2(target, sys.MNT_DETACH | sys.UMOUNT_NOFOLLOW)
        except OSError as error:
            # EINVAL: nothing is mounted there.
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            raise


def _mount_one(mount: Mount, target: str) -> None:
    options = parse_options(mount.options)
    data = ",".join(options.data)
    if options.flags & sys.MS_BIND:
        sys.mount(mount.source, target, None, options.flags & (sys.MS_BIND | sys.MS_REC))
        rest = options.flags & ~(sys.MS_BIND | sys.MS_REC)
        if rest:
            try:
                # A bind takes the flags of its source; they are changed in a second call.
                sys.mount(None, target, None, rest | sys.MS_BIND | sys.MS_REMOUNT)
            except BaseException:
                sys.umount2(target, sys.MNT_DETACH | sys.UMOUNT_NOFOLLOW)
                raise
    elif len(os.fsencode(data)) <= OPTION_BYTES_MAX:
        sys.mount(mount.source, target, mount.type, options.flags, data or None)
    else:
        fd = _new_filesystem(mount, options)
        try:
            sys.move_mount(fd, target)
        finally:
            os.close(fd)
    for propagation in options.propagation:
        sys.mount(None, target, None, propagation)


# fsmount's own attribute bits.
_ATTRIBUTES: Mapping[int, int] = {
    sys.MS_RDONLY: 0x1,
    sys.MS_NOSUID: 0x2,
    sys.MS_NODEV: 0x4,
    sys.MS_NOEXEC: 0x8,
    sys.MS_NOATIME: 0x10,
    sys.MS_STRICTATIME: 0x20,
    sys.MS_NODIRATIME: 0x80,
}


def _new_filesystem(mount: Mount, options: Options) -> int:
    """A detached mount of a new filesystem; lower directories of an overlay one by one, for
    a value is bounded to 255 bytes and the whole was bounded to a page."""
    fs_fd = sys.fsopen(mount.type)
    try:
        sys.fsconfig(fs_fd, sys.FSCONFIG_SET_STRING, "source", mount.source)
        for word in options.data:
            key, equals, value = word.partition("=")
            if not equals:
                sys.fsconfig(fs_fd, sys.FSCONFIG_SET_FLAG, key)
            elif key == "lowerdir" and mount.type == "overlay":
                _set_lowers(fs_fd, value)
            else:
                sys.fsconfig(fs_fd, sys.FSCONFIG_SET_STRING, key, value)
        sys.fsconfig(fs_fd, sys.FSCONFIG_CMD_CREATE)
        attributes = 0
        for flag, bit in _ATTRIBUTES.items():
            if options.flags & flag:
                attributes |= bit
        return sys.fsmount(fs_fd, attributes)
    finally:
        os.close(fs_fd)


def _set_lowers(fs_fd: int, value: str) -> None:
    """Name an overlay's lower directories one by one; before Linux 6.8, which has no option for
    that, all in one."""
    for number, lower in enumerate(split_paths(value)):
        try:
            # The upper directory's option is unescaped by the kernel, this one is not.
            sys.fsconfig(fs_fd, sys.FSCONFIG_SET_STRING, "lowerdir+", lower)
        except OSError as error:
            if error.errno != errno.EINVAL or number:
                raise
            sys.fsconfig(fs_fd, sys.FSCONFIG_SET_STRING, "lowerdir", value)
            return


@contextmanager
def detached(mounts: Sequence[Mount]) -> Generator[int, None, None]:
    """A descriptor of the mount's root directory, attached to no place.

    One mount only, a bind or a new filesystem; more cannot be stacked without a place.
    """
    if len(mounts) != 1:
        raise FailedPrecondition(f"{len(mounts)} mounts cannot be looked into, only one")
    mount = mounts[0]
    options = parse_options(mount.options)
    if options.flags & sys.MS_BIND:
        # A clone would only be another name: the source is what is looked into.
        fd = os.open(mount.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        fd = _new_filesystem(mount, options)
    try:
        root_fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        yield root_fd
    finally:
        os.close(root_fd)
