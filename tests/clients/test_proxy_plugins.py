"""Proxy plugins both ways with Debian's containerd: its snapshots are ours, ours are its."""

import subprocess
from pathlib import Path

import pytest
from bench.daemons import Daemon, running
from examples import busybox_image

pytestmark = pytest.mark.root

IMAGE = "docker.io/library/busybox:latest"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "busybox.tar"
    busybox_image.build(path)
    return path


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A socket's path has its limit.
    return tmp_path_factory.mktemp("p", numbered=True)


def ctr(daemon: Daemon, *words: str) -> str:
    done = subprocess.run(
        ["ctr", "--address", str(daemon.socket), "--namespace", "test", *words],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"ctr {words}: {done.stdout}{done.stderr}"
    return done.stdout


def run_one(daemon: Daemon, snapshotter: str, archive: Path, *runtime: str) -> None:
    """Import, unpack, run, and remove all of it again."""
    ctr(daemon, "images", "import", "--snapshotter", snapshotter, str(archive))
    [name] = ctr(daemon, "images", "ls", "-q").split()
    words = ["--rm", "--snapshotter", snapshotter, *runtime, name, "box", "sh", "-c"]
    told = ctr(daemon, "run", *words, "echo hello > /f && cat /f")
    assert told.strip() == "hello"
    assert "box" not in ctr(daemon, "snapshots", "--snapshotter", snapshotter, "ls")
    ctr(daemon, "images", "rm", "--sync", name)
    listed = ctr(daemon, "snapshots", "--snapshotter", snapshotter, "ls").splitlines()
    assert len(listed) == 1, listed


def rows(daemon: Daemon, namespace: str) -> list[str]:
    done = subprocess.run(
        ["ctr", "-a", str(daemon.socket), "-n", namespace, "snapshots", "ls"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.splitlines()[1:]


def test_containerd_uses_our_snapshots(base: Path, archive: Path) -> None:
    lent = base / "lent.sock"
    plugin = f'[proxy_plugins.holdfast]\ntype = "snapshot"\naddress = "{lent}"\n'
    with (
        running("holdfast", base / "h", settings=f'lend_snapshots = "{lent}"\n') as ours,
        running("containerd", base / "c", for_crun=True, settings=plugin) as theirs,
    ):
        run_one(theirs, "holdfast", archive, "--runc-binary", "crun")
        ctr(theirs, "images", "import", "--snapshotter", "holdfast", str(archive))
        assert rows(ours, "holdfast.lent"), "the layers lie with us"


def test_we_use_containerds_snapshots(base: Path, archive: Path) -> None:
    with running("containerd", base / "c") as theirs:
        plugin = (
            "[proxy_plugins.theirs]\n"
            f'type = "snapshot"\naddress = "{theirs.socket}"\nsnapshotter = "overlayfs"\n'
        )
        with running("holdfast", base / "h", settings=plugin) as ours:
            run_one(ours, "theirs", archive)
            ctr(ours, "images", "import", "--snapshotter", "theirs", str(archive))
            assert rows(theirs, "test"), "the layers lie with containerd"
