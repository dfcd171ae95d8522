"""Metrics: what a container's cgroups count, under the names of containerd's messages.

`read` gives plain maps whose keys are the fields of io.containerd.cgroups.v1.Metrics or of
v2.Metrics; the API makes the message. A file that the kernel does not offer leaves its fields out.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .cgroup import UNIFIED_KEY, Directories, flat, number

V1: Final = 1
V2: Final = 2

Counted = tuple[int | str, Mapping[str, Any] | bytes]
"""V1 or V2 and the fields of that message; or a message's name and bytes, of a shim not ours."""
TICK_NS: Final = 10_000_000

_V1_MEMORY_RENAMED: Final[Mapping[str, str]] = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
    "total_pgpgin": "total_pg_pg_in",
    "total_pgpgout": "total_pg_pg_out",
    "total_pgfault": "total_pg_fault",
    "total_pgmajfault": "total_pg_maj_fault",
}
_V1_MEMORY_BASE: Final = [
    "cache",
    "rss",
    "rss_huge",
    "mapped_file",
    "dirty",
    "writeback",
    "pg_pg_in",
    "pg_pg_out",
    "pg_fault",
    "pg_maj_fault",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
]
_V1_MEMORY: Final = frozenset(
    [
        *_V1_MEMORY_BASE,
        *(f"total_{name}" for name in _V1_MEMORY_BASE),
        "hierarchical_memory_limit",
        "hierarchical_swap_limit",
    ]
)
_V2_MEMORY: Final = frozenset(
    [
        "anon",
        "file",
        "kernel_stack",
        "slab",
        "sock",
        "shmem",
        "file_mapped",
        "file_dirty",
        "file_writeback",
        "anon_thp",
        "inactive_anon",
        "active_anon",
        "inactive_file",
        "active_file",
        "unevictable",
        "slab_reclaimable",
        "slab_unreclaimable",
        "pgfault",
        "pgmajfault",
        "workingset_refault",
        "workingset_activate",
        "workingset_nodereclaim",
        "pgrefill",
        "pgscan",
        "pgsteal",
        "pgactivate",
        "pgdeactivate",
        "pglazyfree",
        "pglazyfreed",
        "thp_fault_alloc",
        "thp_collapse_alloc",
    ]
)
_V2_CPU: Final = frozenset(
    [
        "usage_usec",
        "user_usec",
        "system_usec",
        "nr_periods",
        "nr_throttled",
        "throttled_usec",
        "nr_bursts",
        "burst_usec",
    ]
)
_V2_MEMORY_EVENTS: Final = frozenset(["low", "high", "max", "oom", "oom_kill", "oom_group_kill"])
_BLKIO_FILES: Final[Mapping[str, Sequence[str]]] = {
    "io_service_bytes_recursive": (
        "blkio.bfq.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes_recursive",
        "blkio.throttle.io_service_bytes",
    ),
    "io_serviced_recursive": (
        "blkio.bfq.io_serviced_recursive",
        "blkio.throttle.io_serviced_recursive",
        "blkio.throttle.io_serviced",
    ),
}


def read(directories: Directories) -> tuple[int, dict[str, Any]]:
    """What the cgroups of one container count now: V1 or V2, and the fields of that message."""
    if UNIFIED_KEY in directories and len(directories) == 1:
        return V2, read_v2(Path(directories[UNIFIED_KEY]))
    return V1, read_v1({key: Path(path) for key, path in directories.items()})


def read_v1(at: Mapping[str, Path]) -> dict[str, Any]:
    """The fields of a v1 Metrics, from each controller's directory."""
    metrics: dict[str, Any] = {}
    if "pids" in at:
        limit = number(_text(at["pids"] / "pids.max"), unlimited=0)
        metrics["pids"] = {"current": _number(at["pids"] / "pids.current"), "limit": limit}
    if "cpuacct" in at or "cpu" in at:
        metrics["cpu"] = _cpu_v1(at)
    if "memory" in at:
        metrics["memory"] = _memory_v1(at["memory"])
        control = flat(_text(at["memory"] / "memory.oom_control"))
        names = ("oom_kill_disable", "under_oom", "oom_kill")
        metrics["memory_oom_control"] = {name: control.get(name, 0) for name in names}
    if "blkio" in at:
        metrics["blkio"] = _blkio(at["blkio"])
    if "hugetlb" in at:
        metrics["hugetlb"] = _hugetlb_v1(at["hugetlb"])
    if "rdma" in at:
        metrics["rdma"] = _rdma(at["rdma"])
    return metrics


def read_v2(at: Path) -> dict[str, Any]:
    """The fields of a v2 Metrics."""
    metrics: dict[str, Any] = {}
    cpu: dict[str, Any] = _only(flat(_text(at / "cpu.stat")), _V2_CPU)
    if cpu:
        metrics["cpu"] = cpu | _psi(at / "cpu.pressure")
    if (at / "pids.current").exists():
        limit = number(_text(at / "pids.max"))
        metrics["pids"] = {"current": _number(at / "pids.current"), "limit": limit}
    if (at / "memory.current").exists():
        memory: dict[str, Any] = _only(flat(_text(at / "memory.stat")), _V2_MEMORY)
        for name, file in (
            ("usage", "memory.current"),
            ("usage_limit", "memory.max"),
            ("swap_usage", "memory.swap.current"),
            ("swap_limit", "memory.swap.max"),
            ("max_usage", "memory.peak"),
            ("swap_max_usage", "memory.swap.peak"),
        ):
            memory[name] = _number(at / file)
        metrics["memory"] = memory | _psi(at / "memory.pressure")
        metrics["memory_events"] = _only(flat(_text(at / "memory.events")), _V2_MEMORY_EVENTS)
    if (at / "io.stat").exists():
        metrics["io"] = {"usage": _io_v2(_text(at / "io.stat"))} | _psi(at / "io.pressure")
    hugetlb = _hugetlb_v2(at)
    if hugetlb:
        metrics["hugetlb"] = hugetlb
    if (at / "rdma.current").exists():
        metrics["rdma"] = _rdma(at)
    return metrics


def _cpu_v1(at: Mapping[str, Path]) -> dict[str, Any]:
    cpu: dict[str, Any] = {}
    if "cpuacct" in at:
        directory = at["cpuacct"]
        ticks = flat(_text(directory / "cpuacct.stat"))
        per_cpu = _text(directory / "cpuacct.usage_percpu").split()
        cpu["usage"] = {
            "total": _number(directory / "cpuacct.usage"),
            "user": ticks.get("user", 0) * TICK_NS,
            "kernel": ticks.get("system", 0) * TICK_NS,
            "per_cpu": [int(word) for word in per_cpu],
        }
    if "cpu" in at:
        stat = flat(_text(at["cpu"] / "cpu.stat"))
        cpu["throttling"] = {
            "periods": stat.get("nr_periods", 0),
            "throttled_periods": stat.get("nr_throttled", 0),
            "throttled_time": stat.get("throttled_time", 0),
        }
    return cpu


def _memory_v1(at: Path) -> dict[str, Any]:
    stat = flat(_text(at / "memory.stat"))
    renamed = {_V1_MEMORY_RENAMED.get(key, key): value for key, value in stat.items()}
    memory: dict[str, Any] = _only(renamed, _V1_MEMORY)
    for name, prefix in (
        ("usage", "memory."),
        ("swap", "memory.memsw."),
        ("kernel", "memory.kmem."),
        ("kernel_tcp", "memory.kmem.tcp."),
    ):
        if (at / f"{prefix}usage_in_bytes").exists():
            memory[name] = {
                "limit": _number(at / f"{prefix}limit_in_bytes"),
                "usage": _number(at / f"{prefix}usage_in_bytes"),
                "max": _number(at / f"{prefix}max_usage_in_bytes"),
                "failcnt": _number(at / f"{prefix}failcnt"),
            }
    return memory


def _blkio(at: Path) -> dict[str, Any]:
    blkio: dict[str, Any] = {}
    for field, files in _BLKIO_FILES.items():
        for file in files:
            entries = _blkio_entries(_text(at / file))
            if entries:
                blkio[field] = entries
                break
    return blkio


def _blkio_entries(text: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) != 3:  # the last line is a total over all devices
            continue
        device, operation, value = words
        major, minor = device.split(":")
        entries.append(
            {
                "op": operation,
                "device": _device_name(int(major), int(minor)),
                "major": int(major),
                "minor": int(minor),
                "value": int(value),
            }
        )
    return entries


def _device_name(major: int, minor: int) -> str:
    try:
        return "/dev/" + os.path.basename(os.readlink(f"/sys/dev/block/{major}:{minor}"))
    except OSError:
        return ""


def _io_v2(text: str) -> list[dict[str, int]]:
    entries: list[dict[str, int]] = []
    for line in text.splitlines():
        device, *pairs = line.split()
        if ":" not in device:
            continue
        major, minor = device.split(":")
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        entry = {"major": int(major), "minor": int(minor)}
        for name in ("rbytes", "wbytes", "rios", "wios"):
            entry[name] = int(values.get(name, 0))
        entries.append(entry)
    return entries


def _hugetlb_v1(at: Path) -> list[dict[str, Any]]:
    return [
        {
            "pagesize": size,
            "usage": _number(at / f"hugetlb.{size}.usage_in_bytes"),
            "max": _number(at / f"hugetlb.{size}.max_usage_in_bytes"),
            "failcnt": _number(at / f"hugetlb.{size}.failcnt"),
        }
        for size in _page_sizes(at, ".usage_in_bytes")
    ]


def _hugetlb_v2(at: Path) -> list[dict[str, Any]]:
    return [
        {
            "pagesize": size,
            "current": _number(at / f"hugetlb.{size}.current"),
            "max": _number(at / f"hugetlb.{size}.max"),
            "failcnt": flat(_text(at / f"hugetlb.{size}.events")).get("max", 0),
        }
        for size in _page_sizes(at, ".current")
    ]


def _page_sizes(at: Path, suffix: str) -> list[str]:
    names = sorted(path.name for path in at.glob(f"hugetlb.*{suffix}"))
    sizes = [name.removeprefix("hugetlb.").removesuffix(suffix) for name in names]
    return [size for size in sizes if "." not in size]  # not the rsvd files


def _rdma(at: Path) -> dict[str, Any]:
    rdma: dict[str, Any] = {}
    for field, file in (("current", "rdma.current"), ("limit", "rdma.max")):
        entries: list[dict[str, Any]] = []
        for line in _text(at / file).splitlines():
            device, *pairs = line.split()
            values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            entries.append(
                {
                    "device": device,
                    "hca_handles": number(values.get("hca_handle", "0"), unlimited=2**32 - 1),
                    "hca_objects": number(values.get("hca_object", "0"), unlimited=2**32 - 1),
                }
            )
        rdma[field] = entries
    return rdma


def _psi(path: Path) -> dict[str, Any]:
    stalls: dict[str, Any] = {}
    for line in _text(path).splitlines():
        name, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        stall: dict[str, Any] = {key: float(values[key]) for key in ("avg10", "avg60", "avg300")}
        stalls[name] = stall | {"total": int(values["total"])}
    return {"psi": stalls} if stalls else {}


def _only(values: Mapping[str, int], names: frozenset[str]) -> dict[str, int]:
    return {key: value for key, value in values.items() if key in names}


def _number(path: Path) -> int:
    return number(_text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # gone, or not offered by this kernel
        return ""
