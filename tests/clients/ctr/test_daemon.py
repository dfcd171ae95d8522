"""The daemon itself: version, plugins, events, leases."""

import json
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from driver import BUSYBOX, Ctr, Pair, start

OURS = str(Path(sys.executable).with_name("containerd-shim-holdfast-v1"))

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_version_names_client_and_server(ctr: Ctr) -> None:
    said = ctr.run("version")
    assert re.search(r"Client:\n +Version: .+\n +Revision: .+", said)
    assert re.search(r"Server:\n +Version: .+\n +Revision: .+\n +UUID: [0-9a-f-]{36}", said)


def test_plugins_are_listed_with_type_id_platform_and_status(ctr: Ctr) -> None:
    rows = ctr.table("plugins", "ls")
    assert rows[0] == ["TYPE", "ID", "PLATFORMS", "STATUS"]
    assert ["io.containerd.snapshotter.v1", "overlayfs", "linux/amd64", "ok"] in rows
    assert ["io.containerd.snapshotter.v1", "native", "linux/amd64", "ok"] in rows
    assert ["io.containerd.content.v1", "content", "-", "ok"] in rows
    for service in ("containers", "content", "images", "leases", "snapshots", "tasks", "events"):
        assert ["io.containerd.grpc.v1", service, "-", "ok"] in rows or service == "leases"


def test_events_of_a_run_come_in_order(ctr: Ctr, name: str) -> None:
    with subprocess.Popen([*ctr.words, "events"], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        time.sleep(0.7)
        ctr.run("run", "--rm", BUSYBOX, name, "true")
        time.sleep(0.7)
        listener.terminate()
        lines = [line for line in listener.stdout if name in line or "/tasks/" in line]
    topics = [line.split()[5] for line in lines]
    assert topics == [
        "/snapshot/prepare",
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/containers/delete",
        "/snapshot/remove",
    ] or topics == [
        "/snapshot/prepare",
        "/containers/create",
        "/tasks/create",
        "/tasks/start",
        "/tasks/exit",
        "/tasks/delete",
        "/snapshot/remove",
        "/containers/delete",
    ], lines
    for line in lines:
        assert line.split()[4] == "default"


def test_events_of_an_exec_come_in_order(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    with subprocess.Popen([*ctr.words, "events"], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        time.sleep(0.7)
        ctr.run("tasks", "exec", "--exec-id", "e1", name, "true")
        ctr.run("tasks", "pause", name)
        ctr.run("tasks", "resume", name)
        time.sleep(0.7)
        listener.terminate()
        topics = [line.split()[5] for line in listener.stdout if name in line]
    assert topics == [
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
        "/tasks/paused",
        "/tasks/resumed",
    ]


def test_leases_are_created_listed_and_removed(ctr: Ctr) -> None:
    name = "l-" + uuid.uuid4().hex[:8]
    assert ctr.run("leases", "create", "--id", name, "colour=blue").strip() == name
    rows = ctr.table("leases", "ls")
    assert rows[0] == ["ID", "CREATED", "AT", "LABELS"]
    row = next(r for r in rows if r[0] == name)
    assert row[-1].startswith("colour=blue") or "colour=blue" in row[-1]
    assert "already exists" in ctr.refused("leases", "create", "--id", name)
    assert ctr.run("leases", "rm", name).strip() == name
    assert name not in ctr.run("leases", "ls", "-q").split()


def test_what_the_daemon_prints_of_itself_is_what_containerd_prints(pair: Pair) -> None:
    pair.same("oci", "spec")
    lease = "l-" + uuid.uuid4().hex[:8]
    pair.same("leases", "create", "--id", lease, "--expires", "1h", "a=b")
    assert pair.same("leases", "ls", "-q") == f"{lease}\n"
    pair.same("leases", "rm", "--sync", lease)
    pair.same("leases", "rm", lease, code=1)
    missing = {
        tuple(row[:2])
        for row in pair.theirs.table("plugins", "ls")[1:]
        if row not in pair.ours.table("plugins", "ls")
    }
    # The first runtime's plugin is gone from containerd, too.
    assert {one for one in missing if one[0].startswith("io.containerd.grpc")} == set()
    assert ("io.containerd.runtime.v1", "linux") in missing


def test_an_image_installs_programs(pair: Pair, tmp_path: Path) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
        target = tmp_path / ctr.daemon.kind
        target.mkdir()
        ctr.run("install", "--path", str(target), BUSYBOX)
        assert (target / "bin/busybox").exists()
    pair.same("install", BUSYBOX)
    for ctr in pair:
        assert (ctr.daemon.base / "opt/bin/busybox").exists()
    pair.same("install", BUSYBOX, code=1)
    pair.same("install", "--replace", "--libs", BUSYBOX)


def test_the_debug_socket_tells_what_the_daemon_is_doing(pair: Pair) -> None:
    for ctr, word in zip(pair, ("task holdfast.", "goroutine "), strict=True):
        assert word in ctr.run("pprof", "-d", f"{ctr.daemon.base}/debug.sock", "goroutines")
    ctr = pair.ours
    debug = ("-d", f"{ctr.daemon.base}/debug.sock")
    assert "bytes" in ctr.run("pprof", *debug, "heap")
    assert "thread MainThread" in ctr.run("pprof", *debug, "threadcreate")
    assert "holdfast.api" in ctr.run("pprof", *debug, "profile", "--seconds", "1s")
    assert "404" in ctr.refused("pprof", *debug, "block")
    assert "404" in ctr.refused("pprof", *debug, "trace", "--seconds", "1s")


@pytest.mark.parametrize("runtime", [shutil.which("containerd-shim-runc-v2"), OURS])
def test_a_shim_is_asked_by_its_own_socket(
    pair: Pair, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as this `ctr` can: but for `state` it names no container, or panics."""
    said = pair.same("shim", "--id", "never", "state", code=1)
    assert "fail to connect to container never's shim" in said
    name = "c-" + uuid.uuid4().hex[:8]  # runc's own directory is the same to both
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
        own = f"{name}-{ctr.daemon.kind}"
        start(ctr, own, flags=("--runtime", runtime))
        try:
            told = json.loads(ctr.run("shim", "--id", own, "state"))
            assert list(told)[:4] == ["id", "bundle", "pid", "status"]
            pid = next(row[1] for row in ctr.table("tasks", "ls") if row[0] == own)
            assert (told["id"], str(told["pid"]), told["status"]) == (own, pid, 2)
            assert (Path(told["bundle"]) / "config.json").exists()
            for verb in ("start", "delete"):
                assert "not found" in ctr.refused("shim", "--id", own, verb).lower()
            fifos = [f"--std{each}={ctr.daemon.base}/{each}" for each in ("in", "out", "err")]
            spec = f"--spec={ctr.daemon.base}/process.json"
            (ctr.daemon.base / "process.json").write_text('{"args": ["true"], "cwd": "/"}')
            done = ctr.raw("shim", "--id", own, "exec", *fifos, spec, "e1")
            assert (done.returncode, done.stderr[:6]) == (2, "panic:")
        finally:
            ctr.raw("tasks", "rm", "--force", own)
            ctr.raw("containers", "rm", own)
