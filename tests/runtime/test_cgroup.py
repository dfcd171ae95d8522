"""Cgroups and their metrics, on directories that look like the kernel's."""

import os
import signal
from pathlib import Path

import pytest

from holdfast.runtime import cgroup, files, metrics

LEGACY = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
50 31 0:30 /docker/a /mnt/with\\040space rw - cgroup cgroup rw,memory
"""
UNIFIED = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"


def write(directory: Path, contents: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (directory / name).write_text(text)


def test_hierarchies_are_found_in_mountinfo() -> None:
    found = cgroup.hierarchies(LEGACY + UNIFIED)
    assert found["cpu"] == found["cpuacct"] == ("/sys/fs/cgroup/cpu,cpuacct", "/")
    assert found["name=systemd"] == ("/sys/fs/cgroup/systemd", "/")
    assert found["memory"] == ("/mnt/with space", "/docker/a")
    assert found[""] == ("/sys/fs/cgroup/unified", "/")


@pytest.mark.parametrize(
    ("mountinfo", "layout"),
    [
        (LEGACY, cgroup.Layout.LEGACY),
        (LEGACY + UNIFIED, cgroup.Layout.HYBRID),
        (UNIFIED, cgroup.Layout.UNIFIED),
    ],
)
def test_the_layout_is_told(mountinfo: str, layout: cgroup.Layout, monkeypatch) -> None:
    monkeypatch.setattr(files, "text", lambda path: mountinfo)
    assert cgroup.layout() is layout


def test_cgroups_that_we_share_are_never_a_container_s() -> None:
    assert cgroup.directories(os.getpid()) == {}
    assert cgroup.directories(2**22 + 1) == {}


def test_directories_are_below_what_the_mount_shows(monkeypatch) -> None:
    paths = {"memory": "/docker/a/c", "cpu,cpuacct": "/c", "name=systemd": "/", "gone": "/c"}
    monkeypatch.setattr(files, "text", lambda path: LEGACY)
    monkeypatch.setattr(
        cgroup.procfs, "cgroup_paths", lambda pid: {} if pid == os.getpid() else paths
    )
    assert cgroup.directories(1) == {
        "memory": "/mnt/with space/c",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct/c",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/c",
    }


def test_a_unified_cgroup_is_frozen_and_killed_by_its_files(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "cgroup.procs": "1\n2\n",
            "cgroup.freeze": "",
            "cgroup.kill": "",
            "cgroup.events": "populated 1\nfrozen 0\n",
            "memory.events": "low 0\noom_kill 3\n",
        },
    )
    write(tmp_path / "below", {"cgroup.procs": "3\n"})
    at = {"": str(tmp_path)}
    assert sorted(cgroup.pids(at)) == [1, 2, 3]
    assert cgroup.kill(at, signal.SIGKILL) == 3
    assert (tmp_path / "cgroup.kill").read_text() == "1"
    assert cgroup.can_freeze(at)
    cgroup.set_frozen(at, True)
    assert (tmp_path / "cgroup.freeze").read_text() == "1"
    assert not cgroup.is_frozen(at)
    (tmp_path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert cgroup.is_frozen(at)
    assert cgroup.out_of_memory_kills(at) == 3
    watched = cgroup.watch_out_of_memory(at)
    assert watched is not None
    assert not watched[1]
    os.close(watched[0])


def test_a_v1_cgroup_is_frozen_by_its_freezer(tmp_path: Path) -> None:
    write(tmp_path, {"freezer.state": "FREEZING\n", "cgroup.procs": ""})
    at = {"freezer": str(tmp_path)}
    assert not cgroup.is_frozen(at)
    cgroup.set_frozen(at, False)
    assert (tmp_path / "freezer.state").read_text().startswith("THAWED")
    assert cgroup.kill(at, signal.SIGTERM) == 0


def test_without_cgroups_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert cgroup.pids({}) == []
    assert not cgroup.can_freeze({})
    assert not cgroup.is_frozen({})
    assert cgroup.out_of_memory_kills({}) == 0
    assert cgroup.watch_out_of_memory({}) is None
    assert cgroup.watch_out_of_memory({"": str(tmp_path)}) is None
    assert cgroup.remove({"cpu": str(tmp_path / "gone")}) == []


def test_a_tree_is_removed_deepest_first_and_what_is_busy_is_told(tmp_path: Path) -> None:
    (tmp_path / "c/a/b").mkdir(parents=True)
    assert cgroup.remove({"cpu": str(tmp_path / "c")}) == []
    (tmp_path / "c/a").mkdir(parents=True)
    (tmp_path / "c/a/file").write_text("")
    assert cgroup.remove({"cpu": str(tmp_path / "c")}) == [
        str(tmp_path / "c/a"),
        str(tmp_path / "c"),
    ]


def test_numbers_of_cgroup_files() -> None:
    assert cgroup.number("12\n") == 12
    assert cgroup.number("max") == 2**64 - 1
    assert cgroup.number("max", unlimited=0) == 0
    assert cgroup.number("") == 0


def test_v1_metrics_have_the_names_of_the_message(tmp_path: Path) -> None:
    for name, contents in {
        "pids": {"pids.current": "3\n", "pids.max": "max\n"},
        "cpuacct": {
            "cpuacct.usage": "500\n",
            "cpuacct.stat": "user 2\nsystem 1\n",
            "cpuacct.usage_percpu": "200 300\n",
        },
        "cpu": {"cpu.stat": "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n"},
        "memory": {
            "memory.stat": "cache 1\npgpgin 2\nhierarchical_memsw_limit 5\nunheard_of 9\n",
            "memory.usage_in_bytes": "7\n",
            "memory.limit_in_bytes": "8\n",
            "memory.max_usage_in_bytes": "9\n",
            "memory.failcnt": "0\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        },
        "blkio": {"blkio.throttle.io_service_bytes": "8:0 Read 10\nTotal 10\n"},
        "hugetlb": {"hugetlb.2MB.usage_in_bytes": "1\n", "hugetlb.2MB.rsvd.usage_in_bytes": "1\n"},
        "rdma": {"rdma.current": "mlx hca_handle=2 hca_object=max\n", "rdma.max": ""},
    }.items():
        write(tmp_path / name, contents)
    version, fields = metrics.read({path.name: str(path) for path in tmp_path.iterdir()})
    assert version == metrics.V1
    assert fields["pids"] == {"current": 3, "limit": 0}
    assert fields["cpu"]["usage"] == {
        "total": 500,
        "user": 20_000_000,
        "kernel": 10_000_000,
        "per_cpu": [200, 300],
    }
    assert fields["cpu"]["throttling"]["throttled_periods"] == 2
    assert fields["memory"] == {
        "cache": 1,
        "pg_pg_in": 2,
        "hierarchical_swap_limit": 5,
        "usage": {"usage": 7, "limit": 8, "max": 9, "failcnt": 0},
    }
    assert fields["memory_oom_control"]["oom_kill"] == 4
    (entry,) = fields["blkio"]["io_service_bytes_recursive"]
    assert (entry["op"], entry["major"], entry["minor"], entry["value"]) == ("Read", 8, 0, 10)
    assert [huge["pagesize"] for huge in fields["hugetlb"]] == ["2MB"]
    assert fields["rdma"]["current"] == [
        {"device": "mlx", "hca_handles": 2, "hca_objects": 2**32 - 1}
    ]


def test_v2_metrics_have_the_names_of_the_message(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "pids.current": "3\n",
            "pids.max": "max\n",
            "cpu.stat": "usage_usec 5\nnice_usec 1\n",
            "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n",
            "memory.current": "10\n",
            "memory.max": "max\n",
            "memory.stat": "anon 4\nunheard_of 2\n",
            "memory.events": "oom 1\noom_kill 1\n",
            "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nnone\n",
            "hugetlb.2MB.current": "0\n",
            "hugetlb.2MB.max": "max\n",
            "hugetlb.2MB.events": "max 2\n",
            "rdma.current": "",
        },
    )
    version, fields = metrics.read({"": str(tmp_path)})
    assert version == metrics.V2
    assert fields["pids"] == {"current": 3, "limit": 2**64 - 1}
    assert fields["cpu"]["usage_usec"] == 5
    assert "nice_usec" not in fields["cpu"]
    assert fields["cpu"]["psi"]["some"]["avg10"] == 1.5
    assert fields["memory"]["usage"] == 10
    assert fields["memory"]["usage_limit"] == 2**64 - 1
    assert fields["memory"]["anon"] == 4
    assert fields["memory_events"] == {"oom": 1, "oom_kill": 1}
    assert fields["io"]["usage"] == [
        {"major": 8, "minor": 0, "rbytes": 1, "wbytes": 2, "rios": 3, "wios": 4}
    ]
    assert fields["hugetlb"] == [{"pagesize": "2MB", "current": 0, "max": 2**64 - 1, "failcnt": 2}]
    assert fields["rdma"] == {"current": [], "limit": []}
