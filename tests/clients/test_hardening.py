"""What other runtimes were harmed by: each known hole, looked for in a running Holdfast.

docs/reference/cves.md is the table: which hole, what keeps it shut, which test looks.
"""

import ast
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from bench.daemons import running
from examples import busybox_image

from holdfast.api.host import Host

HERE = Path(__file__).parents[2]
ROOMS = ("actors", "supervision", "runtime", "storage", "api")
CREATES = 40
FAILURES = 40

pytestmark = [pytest.mark.root, pytest.mark.slow]


def modes(base: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for folder, folders, files in os.walk(base):
        for path in (Path(folder), *(Path(folder, name) for name in folders + files)):
            found = path.lstat()
            if not stat.S_ISLNK(found.st_mode):
                yield path, found


def reachable_by_others(base: Path) -> list[str]:
    """The directories below which somebody who is not root could get anywhere."""
    return [
        f"{path} {stat.filemode(found.st_mode)}"
        for path, found in modes(base)
        if path.parent == base.parent and found.st_mode & 0o077
    ]


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("before", [None, 0o777])
def test_nobody_else_gets_into_our_directories(
    tmp_path: Path, umask: int, before: int | None
) -> None:
    base = tmp_path / "d"
    base.mkdir()
    if before is not None:  # as an older or another daemon may have left them
        for name in ("root", "state"):
            (base / name).mkdir()
            (base / name).chmod(before)
    old = os.umask(umask)
    try:
        with running("holdfast", base) as daemon:
            archive = base / "busybox.tar"
            busybox_image.build(archive)
            ctr = ["ctr", "-a", str(daemon.socket)]
            subprocess.run([*ctr, "images", "import", str(archive)], check=True, timeout=60)
            for name in ("root", "state"):
                assert reachable_by_others(base / name) == []
                sockets = [
                    f"{path} {stat.filemode(found.st_mode)}"
                    for path, found in modes(base / name)
                    if stat.S_ISSOCK(found.st_mode) and found.st_mode & 0o007
                ]
                assert sockets == []
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o660
            assert stat.S_IMODE(Path(f"{daemon.socket}.ttrpc").stat().st_mode) == 0o660
    finally:
        os.umask(old)


async def test_a_container_in_the_hosts_network_sees_no_socket_of_ours(host: Host) -> None:
    done = await host.run("busybox", ["cat", "/proc/net/unix"], host_network=True)
    words = [line.split()[-1] for line in done.stdout.decode().splitlines()[1:]]
    assert any(word.startswith("/") for word in words), "the host's sockets are shown"
    abstract = [word for word in words if word.startswith("@")]
    assert not [word for word in abstract if "holdfast" in word or "shim" in word]


async def test_each_container_gets_its_own_environment(host: Host) -> None:
    told: dict[int, bytes] = {}

    async def one(number: int) -> None:
        words = ["sh", "-c", "echo $MINE $OTHER"]
        env = [f"MINE={number}"] + (["OTHER=1"] if number % 2 else [])
        told[number] = (await host.run("busybox", words, env=env)).stdout

    async with trio.open_nursery() as nursery:
        for number in range(CREATES):
            nursery.start_soon(one, number)
    assert told == {n: b"%d 1\n" % n if n % 2 else b"%d\n" % n for n in range(CREATES)}


async def test_a_container_holds_no_descriptor_but_its_own_three(host: Host) -> None:
    done = await host.run("busybox", ["sh", "-c", "echo /proc/self/fd/* | tr ' ' '\\n'"])
    numbers = {int(word.rpartition("/")[2]) for word in done.stdout.decode().split()}
    # The shell that lists them has the directory open meanwhile.
    assert len(numbers - {0, 1, 2}) <= 1, numbers


async def test_a_container_has_no_inheritable_capability_and_no_way_to_more(host: Host) -> None:
    done = await host.run("busybox", ["cat", "/proc/self/status"])
    status = dict(line.split(":", 1) for line in done.stdout.decode().splitlines())
    assert int(status["CapInh"], 16) == 0
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"


async def test_the_kernels_own_files_are_masked(host: Host) -> None:
    looks = "ls /sys/devices/virtual/powercap | wc -l; wc -c < /proc/kcore; wc -c < /proc/keys"
    done = await host.run("busybox", ["sh", "-c", f"({looks}) 2>/dev/null"])
    assert set(done.stdout.split()) <= {b"0"}
    written = await host.run("busybox", ["sh", "-c", "echo 1 > /proc/sys/kernel/panic"])
    assert written.status != 0


async def test_execs_that_fail_to_start_leave_nothing(host: Host) -> None:
    await host.launch("busybox", ["sleep", "1000"], name="box")
    spec = {"args": ["/never-was"], "cwd": "/", "terminal": True, "user": {"uid": 0, "gid": 0}}

    async def fail(number: int) -> None:
        name = f"x{number}"
        await host.tasks.exec("default", "box", name, json.dumps(spec).encode())
        with pytest.raises(Exception, match="never-was"):
            await host.tasks.start("default", "box", name)
        await host.tasks.delete_process("default", "box", name)

    await fail(0)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1, FAILURES):
        await fail(number)
    with trio.fail_after(5):
        while "exec:" in host.tree_text():
            await trio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before + 3


async def test_every_process_of_a_container_is_in_its_cgroup(host: Host) -> None:
    await host.launch("busybox", ["sh", "-c", "sleep 1000 & sleep 1000"], name="box")
    spec = {"args": ["sleep", "1000"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
    await host.tasks.exec("default", "box", "more", json.dumps(spec).encode())
    await host.tasks.start("default", "box", "more")
    with trio.fail_after(10):
        while len(pids := await host.tasks.list_pids("default", "box")) < 3:
            await trio.sleep(0.01)
    paths = {
        line.split(":", 2)[2]
        for pid, _ in pids
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        if "memory" in line or (line.startswith("0::") and "box" in line)
    }
    assert len(paths) == 1
    assert "box" in paths.pop()


def test_no_archive_is_unpacked_by_tarfile() -> None:
    """Its extraction is no border of safety. It only writes for us; nor is anything unpickled."""
    for room in ROOMS:
        for path in (HERE / room).rglob("*.py"):
            if path.name.endswith("_pb2.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    assert node.attr not in ("extract", "extractall", "extractfile"), path
                if isinstance(node, ast.Import):
                    assert not {"pickle", "marshal"} & {alias.name for alias in node.names}, path


def test_the_table_names_tests_that_exist() -> None:
    text = (HERE / "docs/reference/cves.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) >= 20
    for path, test in named:
        assert re.search(rf"^(async )?def {test}\(", (HERE / path).read_text(), re.MULTILINE), (
            f"{path}::{test} is in the table and not there"
        )
