"""The OCI specs of sandboxes, and of containers that join one."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ..actors.errors import FailedPrecondition, InvalidArgument
from .pause import NAME as PAUSE
from .spec import OCI_VERSION, cgroups_path

# What a sandbox has of its own, unless its spec says otherwise.
OWN = ("network", "ipc", "uts")
MOUNTS: Sequence[Mapping[str, Any]] = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
)
JOINED: Mapping[str, str] = {"network": "net", "ipc": "ipc", "uts": "uts", "pid": "pid"}
"""What a container shares with its sandbox, and what the kernel calls that."""


def sandbox_spec(
    namespace: str,
    task_id: str,
    given: Mapping[str, Any],
    root: str,
    *,
    netns_path: str = "",
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    """The spec of a sandbox: what is given, and what it leaves out filled in.

    `root` is the root filesystem for one that names none. Without a process it is the pause
    program; without namespaces it has its own network, ipc and uts.
    """
    process = {"cwd": "/", "user": {"uid": 0, "gid": 0}, **section(given, "process")}
    process["args"] = process.get("args") or [f"/{PAUSE}"]
    linux = section(given, "linux")
    namespaces = _namespaces(linux)
    if not namespaces:
        namespaces = [{"type": kind} for kind in OWN]
    kinds = {each.get("type") for each in namespaces}
    if netns_path:
        namespaces = [each for each in namespaces if each.get("type") != "network"]
        namespaces.append({"type": "network", "path": netns_path})
    if "mount" not in kinds:
        namespaces.append({"type": "mount"})
    spec = {
        "ociVersion": OCI_VERSION,
        **given,
        "process": process,
        "root": {"path": root, "readonly": True, **section(given, "root")},
        "mounts": given.get("mounts") or MOUNTS,
        "annotations": {**section(given, "annotations"), **(annotations or {})},
        "linux": {
            **linux,
            "namespaces": namespaces,
            "cgroupsPath": linux.get("cgroupsPath") or cgroups_path(namespace, task_id),
        },
    }
    return json.dumps(spec).encode()


def needs_root(given: Mapping[str, Any]) -> bool:
    """Whether the spec leaves the root filesystem to us. Refused when it has a process and no
    place for it."""
    if section(given, "root").get("path"):
        return False
    if section(given, "process").get("args"):
        raise InvalidArgument("the sandbox's process has no root filesystem: invalid argument")
    return True


def join_sandbox(config: Mapping[str, Any], pid: int, proc: Path = Path("/proc")) -> bytes:
    """The spec with the namespaces of the process `pid`, where it leaves them open and that
    process has its own. Blocks, though briefly."""
    linux = section(config, "linux")
    namespaces = _namespaces(linux)
    joined: set[str] = set()
    for kind, name in JOINED.items():
        path = proc / str(pid) / "ns" / name
        try:
            own = os.readlink(path) != os.readlink(proc / "self/ns" / name)
        except OSError as error:
            raise FailedPrecondition(f"the sandbox's process {pid} is gone: {error}") from error
        open_ = [each for each in namespaces if each.get("type") == kind and not each.get("path")]
        for each in open_ if own else ():
            each["path"] = str(path)
            joined.add(kind)
    # A name that it were given would be the whole sandbox's.
    dropped = ("hostname", "domainname") if "uts" in joined else ()
    rest = {key: value for key, value in config.items() if key not in dropped}
    return json.dumps({**rest, "linux": {**linux, "namespaces": namespaces}}).encode()


def _namespaces(linux: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: Any = linux.get("namespaces") or []
    if not isinstance(found, list):
        raise InvalidArgument("spec: namespaces is no list: invalid argument")
    every: list[Any] = [*found]
    return [dict(section({"namespace": each}, "namespace")) for each in every]


def section(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object of a spec; empty when there is none, refused when it is something else."""
    found = spec.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidArgument(f"spec: {name} is no object: invalid argument")
    return cast(dict[str, Any], found)
