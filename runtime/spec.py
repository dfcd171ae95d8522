"""The OCI runtime spec of a container that Holdfast itself composes.

Clients of the API bring their own spec; `holdfast run` and the embedded host have an image's
config and a few wishes, and get the spec here. What is left out of the wishes is containerd's
default: fourteen capabilities and none inheritable, masked and read-only kernel paths, no new
privileges, every device denied that the runtime does not make itself, five namespaces.

Nothing here touches a file: the user is resolved by the caller, who has the root filesystem.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..actors.errors import InvalidArgument

OCI_VERSION = "1.0.2"

CAPABILITIES: Sequence[str] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

MASKED_PATHS: Sequence[str] = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)

READ_ONLY_PATHS: Sequence[str] = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

PATH_DEFAULT = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

CPU_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """A directory or file of the host, seen inside the container."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who the process runs as, in numbers."""

    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rlimit:
    """One resource limit of the process: `Rlimit(kind="RLIMIT_NOFILE", soft=1024, hard=1024)`."""

    kind: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a container shall be; each default is containerd's."""

    args: Sequence[str]
    env: Sequence[str] = ()
    cwd: str = "/"
    user: User = User()
    terminal: bool = False
    hostname: str = ""
    root: str = "rootfs"
    read_only_root: bool = False
    binds: Sequence[BindMount] = ()
    tmpfs: Sequence[str] = ()
    host_network: bool = False
    network_namespace: str = ""
    memory_limit_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    pids_limit: int | None = None
    capabilities: Sequence[str] = CAPABILITIES
    rlimits: Sequence[Rlimit] = (Rlimit(kind="RLIMIT_NOFILE", soft=1024, hard=1024),)
    no_new_privileges: bool = True
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])


def image_args(
    entrypoint: Sequence[str], command: Sequence[str], wished: Sequence[str]
) -> Sequence[str]:
    """The process's arguments: the image's entrypoint, then the caller's or the image's command."""
    args = [*entrypoint, *(wished or command)]
    if not args:
        raise InvalidArgument("no command: neither the image nor the caller names one")
    return args


def merge_env(image: Sequence[str], wished: Sequence[str]) -> Sequence[str]:
    """The image's environment with the caller's over it; a wish without `=` removes a name."""
    values: dict[str, str] = {}
    for entry in [PATH_DEFAULT, *image, *wished]:
        name, equals, _ = entry.partition("=")
        if equals:
            values[name] = entry
        else:
            values.pop(name, None)
    return list(values.values())


def cgroups_path(namespace: str, container_id: str) -> str:
    """Where the container's cgroup stands, as containerd places it."""
    return f"/{namespace}/{container_id}"


def make_spec(namespace: str, container_id: str, wishes: Wishes) -> Mapping[str, Any]:
    """The whole spec as data. `InvalidArgument` when the wishes contradict themselves."""
    check(wishes)
    return {
        "ociVersion": OCI_VERSION,
        "process": make_process(wishes),
        "root": {"path": wishes.root, "readonly": wishes.read_only_root},
        "hostname": wishes.hostname or container_id,
        "mounts": [*default_mounts(wishes.host_network), *wished_mounts(wishes)],
        "annotations": dict(wishes.annotations),
        "linux": {
            "cgroupsPath": cgroups_path(namespace, container_id),
            "namespaces": make_namespaces(wishes),
            "resources": make_resources(wishes),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
        },
    }


def spec_bytes(spec: Mapping[str, Any]) -> bytes:
    """The spec as the JSON that a container record's Any value and a bundle hold."""
    return json.dumps(spec, separators=(",", ":")).encode()


def check(wishes: Wishes) -> None:
    """Refuse what no runtime could do."""
    if not wishes.args:
        raise InvalidArgument("args must not be empty")
    if not wishes.cwd.startswith("/"):
        raise InvalidArgument(f"cwd {wishes.cwd!r} must be an absolute path")
    if wishes.host_network and wishes.network_namespace:
        raise InvalidArgument("host network and a network namespace exclude each other")
    for target in [*(bind.target for bind in wishes.binds), *wishes.tmpfs]:
        if not target.startswith("/"):
            raise InvalidArgument(f"mount target {target!r} must be an absolute path")
    if wishes.memory_limit_bytes is not None and wishes.memory_limit_bytes <= 0:
        raise InvalidArgument(f"memory limit {wishes.memory_limit_bytes} must be above zero")
    if wishes.cpus is not None and wishes.cpus <= 0:
        raise InvalidArgument(f"cpus {wishes.cpus} must be above zero")


def make_process(wishes: Wishes) -> dict[str, Any]:
    """The `process` part, which is also what an exec brings."""
    env = list(wishes.env)
    if wishes.terminal and not any(entry.startswith("TERM=") for entry in env):
        env.append("TERM=xterm")
    user: dict[str, Any] = {"uid": wishes.user.uid, "gid": wishes.user.gid}
    if wishes.user.groups:
        user["additionalGids"] = list(wishes.user.groups)
    # Invariant: inheritable stays absent. Capabilities inherited through exec let an
    # unprivileged user's setuid-less binaries regain them.
    capabilities = {
        name: list(wishes.capabilities) for name in ("bounding", "effective", "permitted")
    }
    return {
        "terminal": wishes.terminal,
        "user": user,
        "args": list(wishes.args),
        "env": env,
        "cwd": wishes.cwd,
        "capabilities": capabilities,
        "rlimits": [
            {"type": limit.kind, "soft": limit.soft, "hard": limit.hard} for limit in wishes.rlimits
        ],
        "noNewPrivileges": wishes.no_new_privileges,
    }


def make_namespaces(wishes: Wishes) -> list[dict[str, str]]:
    """Five namespaces of its own, but the host's network or a named one where wished."""
    namespaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]
    if wishes.network_namespace:
        namespaces.append({"type": "network", "path": wishes.network_namespace})
    elif not wishes.host_network:
        namespaces.append({"type": "network"})
    return namespaces


def make_resources(wishes: Wishes) -> dict[str, Any]:
    """Limits, with every device denied that the runtime does not allow by itself."""
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if wishes.memory_limit_bytes is not None:
        resources["memory"] = {"limit": wishes.memory_limit_bytes}
    cpu: dict[str, int] = {}
    if wishes.cpus is not None:
        cpu |= {"quota": round(wishes.cpus * CPU_PERIOD_US), "period": CPU_PERIOD_US}
    if wishes.cpu_shares is not None:
        cpu["shares"] = wishes.cpu_shares
    if cpu:
        resources["cpu"] = cpu
    if wishes.pids_limit is not None:
        resources["pids"] = {"limit": wishes.pids_limit}
    return resources


def default_mounts(host_network: bool) -> list[dict[str, Any]]:
    """The file systems of the kernel that a Linux process expects."""
    quiet = ["nosuid", "noexec", "nodev"]
    scratch = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
    # A fresh sysfs belongs to the network namespace of whoever mounts it, and the kernel
    # refuses it to a user namespace that does not own that network: bind the host's own.
    sys = (
        mount("/sys", "bind", "/sys", ["rbind", "rprivate", "nosuid", "noexec", "nodev", "ro"])
        if host_network
        else mount("/sys", "sysfs", "sysfs", [*quiet, "ro"])
    )
    return [
        mount("/proc", "proc", "proc", quiet),
        mount("/dev", "tmpfs", "tmpfs", scratch),
        mount("/dev/pts", "devpts", "devpts", terminals),
        mount("/dev/shm", "tmpfs", "shm", [*quiet, "mode=1777", "size=65536k"]),
        mount("/dev/mqueue", "mqueue", "mqueue", quiet),
        sys,
        mount("/run", "tmpfs", "tmpfs", scratch),
    ]


def wished_mounts(wishes: Wishes) -> list[dict[str, Any]]:
    """The caller's own mounts, after the kernel's so that they may lie beneath them."""
    binds = [
        mount(
            bind.target,
            "bind",
            bind.source,
            ["rbind", "rprivate", "ro" if bind.read_only else "rw"],
        )
        for bind in wishes.binds
    ]
    return binds + [
        mount(target, "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777"]) for target in wishes.tmpfs
    ]


def mount(destination: str, kind: str, source: str, options: Sequence[str]) -> dict[str, Any]:
    """One entry of the spec's `mounts`."""
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}
