"""Bundles: the directory of one task, from before its first effect until after its last.

    state/tasks/<namespace>/<id>/        0700
        config.json                      the OCI spec, as the container record holds it
        rootfs/                          where the shim mounts the root, in its own mount namespace
        shim.sock, shim.json, shim.lock, init.pid, exits/        the shim's own: shim.py
        <slot>.pty, <slot>.tty           a terminal's keeper: ptykeeper.py
        pin-<name>                       where the kernel pins no process: pins.py

A bundle is made before a shim is asked for, and removed after the shim is gone; so whatever a
crash leaves behind stands in a directory that the next boot finds. Removal never descends into
another file system, nor into `rootfs`: what a client mounted there is not ours to delete.

These are plain functions that touch the disk; call them in a thread.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..actors import failpoints
from ..actors.errors import FailedPrecondition, InvalidArgument
from ..storage.mounts import unmount_all

CONFIG_NAME = "config.json"
ROOTFS_NAME = "rootfs"
TASKS_NAME = "tasks"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BundleName:
    """Whose bundle a directory is."""

    namespace: str
    id: str


def bundle_path(state: Path, namespace: str, id: str) -> Path:
    """Where the bundle of a task stands."""
    for part in (namespace, id):
        if not part or part in (".", "..") or "/" in part or "\0" in part:
            raise InvalidArgument(f"identifier {part!r} is no file name")
    return state / TASKS_NAME / namespace / id


def make_bundle(path: Path, config: bytes) -> None:
    """Makes the directories and writes the spec. A leftover of an earlier task is replaced."""
    for directory in (path.parent.parent, path.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        remove_bundle(path)
    failpoints.reach("bundle.make.mkdir")
    path.mkdir(mode=0o700)
    failpoints.passed("bundle.make.made")
    (path / ROOTFS_NAME).mkdir(mode=0o711)
    failpoints.reach("bundle.make.config")
    descriptor = os.open(path / CONFIG_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(config)
    failpoints.passed("bundle.make.written")


def remove_bundle(path: Path) -> None:
    """Removes the bundle; no error when it is gone already.

    FailedPrecondition when `rootfs` holds files: they are nobody's that we know.
    """
    rootfs = path / ROOTFS_NAME
    failpoints.reach("bundle.remove.unmount")
    unmount_all(str(rootfs))
    failpoints.passed("bundle.remove.unmounted")
    try:
        rootfs.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise FailedPrecondition(f"bundle {path}: rootfs is not empty: {error}") from error
    try:
        device = path.lstat().st_dev
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        failpoints.reach("bundle.remove.entry")
        if not entry.is_dir(follow_symlinks=False):
            Path(entry.path).unlink(missing_ok=True)
        elif entry.stat(follow_symlinks=False).st_dev == device:
            shutil.rmtree(entry.path)
        else:
            raise FailedPrecondition(f"bundle {path}: {entry.name} is another file system")
    failpoints.reach("bundle.remove.rmdir")
    path.rmdir()
    failpoints.passed("bundle.remove.removed")


def bundles(state: Path) -> Iterator[BundleName]:
    """Every bundle on disk."""
    root = state / TASKS_NAME
    if not root.is_dir():
        return
    for namespace in sorted(root.iterdir()):
        if namespace.is_dir():
            for bundle in sorted(namespace.iterdir()):
                yield BundleName(namespace=namespace.name, id=bundle.name)


def leftovers(state: Path, known: Iterable[BundleName]) -> list[BundleName]:
    """The bundles of no recorded task: what a removal left when it was interrupted."""
    recorded = set(known)
    return [name for name in bundles(state) if name not in recorded]


def cgroups_path(config: bytes) -> str:
    """The spec's `linux.cgroupsPath`, or "" where it names none."""
    return str(_section(parse_config(config), "linux").get("cgroupsPath") or "")


def has_terminal(config: bytes) -> bool:
    """The spec's `process.terminal`."""
    return bool(_section(parse_config(config), "process").get("terminal"))


def parse_config(config: bytes) -> dict[str, Any]:
    """The spec as data; InvalidArgument when it is no JSON object."""
    try:
        spec = json.loads(config)
    except ValueError as error:
        raise InvalidArgument(f"spec is no JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidArgument("spec is no JSON object")
    return cast(dict[str, Any], spec)


def _section(spec: dict[str, Any], name: str) -> dict[str, Any]:
    found = spec.get(name)
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}
