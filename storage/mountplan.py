"""The plan of an activation: which mounts the daemon makes, what must be made for them first, and
which are left to the client.

Terms. A mount's type may carry *transforms* in front, each with a slash: `format/mkdir/overlay`.
They are carried out in their order, and what remains is the type.

    format   fills `{{ }}` in source, target and options from the mounts before it:
                 {{ mount 0 }}        where that mount stands
                 {{ source 0 }}, {{ target 0 }}
                 {{ overlay 0 2 }}    where these stand, divided by colons, in either direction
    mkdir    X-containerd.mkdir.path=PATH[:MODE[:UID:GID]]     makes the directory
    mkfs     X-containerd.mkfs.size=16M, .fs=ext4, .uuid=...   makes the source, a file with a
                                                               filesystem, unless it is there

A *handler* mounts a type that the kernel does not know: `loop` shows its source, a file, as a
block device, and where it stands is a symbolic link to that device.

Everything before the last mount with a transform, and up to the last with a handler, is *active*:
the daemon makes it. The rest is *system*: the client gets it back, filled in, and mounts it. For a
*temporary* activation all is active, and what is left is a bind of the topmost.

Where a mount will stand is known beforehand, so a plan is made without touching anything.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..actors.errors import InvalidArgument, Unimplemented
from .labels import quoted
from .mounts import Mount

MOUNTS_MAX = 255
LOOP = "loop"
HANDLERS = frozenset({LOOP})
MKDIR, MKFS = "X-containerd.mkdir.", "X-containerd.mkfs."
FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs"})
MODE_DEFAULT = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory that a mount needs."""

    path: str
    mode: int = MODE_DEFAULT
    uid: int = 0
    gid: int = 0

    def to_record(self) -> Mapping[str, Any]:
        """As plain values, for a frame."""
        return {
            "make": "directory",
            "path": self.path,
            "mode": self.mode,
            "uid": self.uid,
            "gid": self.gid,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """A file with a filesystem that a mount needs."""

    path: str
    size_bytes: int
    kind: str = "ext4"
    uuid: str = ""

    def to_record(self) -> Mapping[str, Any]:
        """As plain values, for a frame."""
        return {
            "make": "filesystem",
            "path": self.path,
            "size_bytes": self.size_bytes,
            "kind": self.kind,
            "uuid": self.uuid,
        }


Making = Directory | Filesystem


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One mount that the daemon makes, and what it makes before."""

    mount: Mount
    point: str
    makings: Sequence[Making] = ()

    def to_record(self) -> Mapping[str, Any]:
        """As plain values, for a frame."""
        return {
            "mount": self.mount.to_record(),
            "point": self.point,
            "makings": [making.to_record() for making in self.makings],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A whole activation. `makings` are for the first of the system mounts."""

    steps: Sequence[Step]
    system: Sequence[Mount]
    makings: Sequence[Making] = ()


def make_plan(mounts: Sequence[Mount], directory: Path, temporary: bool) -> Plan:
    """The plan whose mounts stand in `directory`. `Unimplemented`, as from containerd, when there
    is nothing to do for a mount manager: then the client mounts all by itself."""
    if len(mounts) > MOUNTS_MAX:
        raise InvalidArgument(f"too many mounts ({len(mounts)}): maximum {MOUNTS_MAX}")
    for mount in mounts:
        if any("\0" in text for text in (mount.type, mount.source, mount.target, *mount.options)):
            raise InvalidArgument("a mount contains a NUL byte: invalid argument")
    active = 0
    handled = False
    for number, mount in enumerate(mounts):
        transforms, kind = split_type(mount.type)
        if transforms:
            active, handled = number, True
        if kind in HANDLERS or temporary:
            active, handled = number + 1, True
    if not handled:
        raise Unimplemented("no mount needs the mount manager: not implemented")
    steps: list[Step] = []
    for number in range(active):
        mount, makings = transformed(mounts[number], steps)
        # The names count down: who takes the mounts off goes through them in order.
        point = directory / str(active - number)
        steps.append(Step(mount=mount, point=str(point), makings=makings))
    system = list(mounts[active:])
    last: Sequence[Making] = ()
    if system:
        system[0], last = transformed(system[0], steps)
    if temporary:
        bind = Mount(type="bind", source=steps[-1].point, options=("rbind",))
        system.append(bind)
    return Plan(steps=steps, system=system, makings=last)


def split_type(text: str) -> tuple[Sequence[str], str]:
    """The transforms in front of a type, and the type."""
    transforms: list[str] = []
    while True:
        first, slash, rest = text.partition("/")
        if not slash or first not in TRANSFORMS:
            return transforms, text
        transforms.append(first)
        text = rest


def transformed(mount: Mount, before: Sequence[Step]) -> tuple[Mount, Sequence[Making]]:
    """The mount after its transforms, and what they want made."""
    transforms, kind = split_type(mount.type)
    makings: list[Making] = []
    for name in transforms:
        mount, wanted = TRANSFORMS[name](mount, before)
        makings += wanted
    return replace(mount, type=kind), makings


_BRACES = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def format_mount(mount: Mount, before: Sequence[Step]) -> tuple[Mount, Sequence[Making]]:
    """Fill in what stands in braces."""

    def fill(text: str) -> str:
        filled = _BRACES.sub(lambda found: _value(found[1].split(), before), text)
        if "{{" in _BRACES.sub("", text):
            raise InvalidArgument(f"unclosed action in {quoted(text)}: invalid argument")
        return filled

    options = tuple(fill(option) for option in mount.options)
    return replace(mount, source=fill(mount.source), target=fill(mount.target), options=options), ()


def _value(words: Sequence[str], before: Sequence[Step]) -> str:
    try:
        numbers = [int(word) for word in words[1:]]
    except ValueError:
        numbers = []
    match words[:1], numbers:
        case ["mount"], [number]:
            return _step(number, before).point
        case ["source"], [number]:
            return _step(number, before).mount.source
        case ["target"], [number]:
            return _step(number, before).mount.target
        case ["overlay"], [first, last]:
            step = 1 if first <= last else -1
            chosen = range(first, last + step, step)
            return ":".join(_step(number, before).point for number in chosen)
        case _:
            raise InvalidArgument(f"cannot format {quoted(' '.join(words))}: invalid argument")


def _step(number: int, before: Sequence[Step]) -> Step:
    if not 0 <= number < len(before):
        raise InvalidArgument(
            f"index out of bounds: {number}, has {len(before)} active mounts: invalid argument"
        )
    return before[number]


def want_directories(mount: Mount, _before: Sequence[Step]) -> tuple[Mount, Sequence[Making]]:
    """Take the directories out of the options."""
    rest = tuple(word for word in mount.options if not word.startswith(MKDIR))
    wanted: list[Making] = []
    for word in mount.options:
        if not word.startswith(MKDIR):
            continue
        key, _, value = word.removeprefix(MKDIR).partition("=")
        path, *numbers = value.split(":")
        try:
            if key != "path" or len(numbers) not in (0, 1, 3):
                raise ValueError
            mode = int(numbers[0], 8) if numbers else MODE_DEFAULT
            uid, gid = (int(number) for number in numbers[1:]) if numbers[1:] else (0, 0)
            if not 0 <= mode <= 0o777 or min(uid, gid) < 0:
                raise ValueError
        except ValueError:
            raise InvalidArgument(
                f"invalid mkdir option {quoted(word)}: invalid argument"
            ) from None
        wanted.append(Directory(path=path, mode=mode, uid=uid, gid=gid))
    return replace(mount, options=rest), wanted


def want_filesystem(mount: Mount, _before: Sequence[Step]) -> tuple[Mount, Sequence[Making]]:
    """Take the file's filesystem out of the options."""
    rest = tuple(word for word in mount.options if not word.startswith(MKFS))
    kind, size_bytes, uuid = "ext4", 0, ""
    for word in mount.options:
        if not word.startswith(MKFS):
            continue
        key, _, value = word.removeprefix(MKFS).partition("=")
        match key:
            case "size":
                size_bytes = parse_size(value)
            case "fs":
                kind = value
            case "uuid":
                uuid = value
            case _:
                raise InvalidArgument(f"unknown mount option {key}: invalid argument")
    if kind not in FILESYSTEMS:
        raise InvalidArgument(f"unsupported filesystem {quoted(kind)}: invalid argument")
    if uuid and not re.fullmatch(r"[0-9a-fA-F-]{36}", uuid):
        raise InvalidArgument(f"bad option uuid: {quoted(uuid)}: invalid argument")
    if size_bytes == 0:
        raise InvalidArgument("mkfs requires mkfs.size option: invalid argument")
    making = Filesystem(path=mount.source, size_bytes=size_bytes, kind=kind, uuid=uuid)
    return replace(mount, options=rest), [making]


_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
SIZE_BYTES_MAX = 1 << 50


def parse_size(text: str) -> int:
    """A size in bytes: `16777216`, `16M`, `16MiB`, `1.5g`."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"bad option size: {quoted(text)}: invalid argument")
    size_bytes = int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))
    if size_bytes > SIZE_BYTES_MAX:
        raise InvalidArgument(f"bad option size: {quoted(text)}: invalid argument")
    return size_bytes


Transform = Callable[[Mount, Sequence[Step]], tuple[Mount, Sequence[Making]]]

TRANSFORMS: Mapping[str, Transform] = {
    "format": format_mount,
    "mkdir": want_directories,
    "mkfs": want_filesystem,
}
