"""Debian's own unmodified `ctr` drives the daemon.

Each promise is checked against Holdfast, and the same test runs against Debian's containerd
too, so that what stands here is what `ctr` really prints there. containerd runs runc, the
runtime it works with on every host; Holdfast runs its default.
"""

import contextlib
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from bench.daemons import Daemon, running
from examples import busybox_image
from terminal import on_a_terminal

pytestmark = [pytest.mark.root, pytest.mark.slow]

BUSYBOX = busybox_image.DEFAULT_NAME
SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"


class Ctr:
    """`ctr` with the daemon's address: run it, read its words."""

    def __init__(self, daemon: Daemon, namespace: str = "default") -> None:
        self.daemon = daemon
        self.words = ["ctr", "--address", str(daemon.socket), "--namespace", namespace]

    def run(
        self, *words: str, code: int = 0, stdin: str | None = None, timeout_s: float = 60
    ) -> str:
        """Run a command, check its exit code, give its standard output."""
        done = self.raw(*words, stdin=stdin, timeout_s=timeout_s)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def raw(
        self, *words: str, stdin: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.words, *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            check=False,
        )

    def refused(self, *words: str) -> str:
        """Run a command that must fail, give its standard error."""
        done = self.raw(*words)
        assert done.returncode != 0, f"{words} was not refused: {done.stdout}"
        return done.stderr

    def table(self, *words: str) -> list[list[str]]:
        """A printed table as rows of words, its heading first."""
        return [line.split() for line in self.run(*words).splitlines() if line.strip()]


@pytest.fixture(scope="module", params=["holdfast", "containerd"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp(request.param)
    archive = base / "busybox.tar"
    busybox_image.build(archive)
    with running(request.param, base) as started:
        Ctr(started).run("images", "import", str(archive))
        yield started


@pytest.fixture
def ctr(daemon: Daemon) -> Ctr:
    return Ctr(daemon)


@pytest.fixture
def fresh(daemon: Daemon) -> Ctr:
    """`ctr` in a namespace of the test's own."""
    return Ctr(daemon, "ns-" + uuid.uuid4().hex[:8])


@pytest.fixture
def name(ctr: Ctr) -> Iterator[str]:
    """A container name that is free, and free again afterwards."""
    chosen = "c-" + uuid.uuid4().hex[:8]
    yield chosen
    ctr.raw("tasks", "kill", "-s", "SIGKILL", chosen)
    for _ in range(50):
        if ctr.raw("tasks", "rm", chosen).returncode == 0:
            break
        if chosen not in ctr.raw("tasks", "ls").stdout:
            break
        time.sleep(0.1)
    ctr.raw("containers", "rm", chosen)
    ctr.raw("snapshots", "rm", chosen)


def start(ctr: Ctr, name: str, *words: str, flags: tuple[str, ...] = ()) -> None:
    """Run a container in the background that lives until it is killed."""
    ctr.run("run", "-d", *flags, BUSYBOX, name, *(words or ("sleep", "1000")))


def status(ctr: Ctr, name: str) -> str:
    rows = [row for row in ctr.table("tasks", "ls") if row[0] == name]
    return rows[0][2] if rows else "GONE"


def wait_for(ctr: Ctr, name: str, wanted: str) -> None:
    deadline = time.monotonic() + 20
    while (seen := status(ctr, name)) != wanted:
        assert time.monotonic() < deadline, f"{name} is {seen}, not {wanted}"
        time.sleep(0.05)


# ---------------------------------------------------------------- version, plugins


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


# ---------------------------------------------------------------- namespaces


def test_a_namespace_is_created_labelled_listed_and_removed(ctr: Ctr) -> None:
    name = "ns-" + uuid.uuid4().hex[:8]
    ctr.run("namespaces", "create", name, "colour=blue")
    assert [name, "colour=blue"] in ctr.table("namespaces", "ls")
    ctr.run("namespaces", "label", name, "colour=red")
    assert [name, "colour=red"] in ctr.table("namespaces", "ls")
    assert ctr.run("namespaces", "rm", name) == f"{name}\n"
    assert name not in ctr.run("namespaces", "ls", "-q").split()


def test_a_namespace_is_not_created_twice(ctr: Ctr) -> None:
    name = "ns-" + uuid.uuid4().hex[:8]
    ctr.run("namespaces", "create", name)
    assert f'namespace "{name}": already exists' in ctr.refused("namespaces", "create", name)
    ctr.run("namespaces", "rm", name)


def test_a_namespace_that_holds_something_is_not_removed(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    said = fresh.refused("namespaces", "rm", fresh.words[-1])
    assert "must be empty, but it still has" in said
    assert "images" in said


def test_removing_an_unknown_namespace_is_no_error(ctr: Ctr) -> None:
    assert ctr.run("namespaces", "rm", "never-was") == "never-was\n"


# ---------------------------------------------------------------- images


def test_images_are_listed_with_their_columns(ctr: Ctr) -> None:
    rows = ctr.table("images", "ls")
    assert rows[0] == ["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]
    row = next(r for r in rows if r[0] == BUSYBOX)
    assert row[1] == "application/vnd.oci.image.manifest.v1+json"
    assert re.fullmatch("sha256:[0-9a-f]{64}", row[2])
    assert row[5] == "linux/amd64"
    assert BUSYBOX in ctr.run("images", "ls", "-q").split()


def test_an_import_says_what_it_unpacks(fresh: Ctr, daemon: Daemon) -> None:
    said = fresh.run("images", "import", str(daemon.base / "busybox.tar"))
    assert re.search(rf"unpacking {re.escape(BUSYBOX)} \(sha256:[0-9a-f]+\)\.\.\.done", said)


def test_an_image_is_labelled(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    assert fresh.run("images", "label", BUSYBOX, "owner=me").strip() == "owner=me"
    assert "owner=me" in fresh.run("images", "ls")


def test_an_image_is_checked_complete_and_unpacked(ctr: Ctr) -> None:
    rows = ctr.table("images", "check")
    row = next(r for r in rows if r[0] == BUSYBOX)
    assert row[3] == "complete"
    assert row[-1] == "true"


def test_an_image_exported_is_the_image_imported(
    fresh: Ctr, daemon: Daemon, tmp_path: Path
) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    digest = next(row[2] for row in fresh.table("images", "ls") if row[0] == BUSYBOX)
    archive = tmp_path / "out.tar"
    fresh.run("images", "export", str(archive), BUSYBOX)
    other = Ctr(daemon, "ns-" + uuid.uuid4().hex[:8])
    other.run("images", "import", "--no-unpack", str(archive))
    assert next(row[2] for row in other.table("images", "ls") if row[0] == BUSYBOX) == digest


def test_an_image_is_tagged_and_removed(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    assert fresh.run("images", "tag", BUSYBOX, "example.org/mine:1").strip() == "example.org/mine:1"
    assert "already exists" in fresh.refused("images", "tag", BUSYBOX, "example.org/mine:1")
    assert fresh.run("images", "rm", "example.org/mine:1").strip() == "example.org/mine:1"
    assert "example.org/mine:1" not in fresh.run("images", "ls", "-q")


def test_content_goes_with_the_last_image_that_needs_it(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    assert fresh.run("content", "ls", "-q").split()
    fresh.run("images", "rm", "--sync", BUSYBOX)
    assert fresh.run("content", "ls", "-q").split() == []


def test_removing_an_unknown_image_only_warns(ctr: Ctr) -> None:
    done = ctr.raw("images", "rm", "example.org/never:was")
    assert done.returncode == 0
    assert "example.org/never:was: image not found" in done.stderr


# ---------------------------------------------------------------- content


def test_content_is_ingested_read_labelled_and_removed(fresh: Ctr) -> None:
    words = "some words\n"
    fresh.run("content", "ingest", "a-reference", stdin=words)
    (digest,) = fresh.run("content", "ls", "-q").split()
    assert fresh.run("content", "get", digest) == words
    rows = fresh.table("content", "ls")
    assert rows[0] == ["DIGEST", "SIZE", "AGE", "LABELS"]
    assert rows[1][:3] == [digest, "11B", "Less"]
    fresh.run("content", "label", digest, "colour=blue")
    assert "colour=blue" in fresh.run("content", "ls")
    assert fresh.run("content", "rm", digest).strip() == digest
    assert fresh.run("content", "ls", "-q") == ""


def test_content_with_an_unexpected_digest_is_refused(fresh: Ctr) -> None:
    wrong = "sha256:" + "0" * 64
    done = fresh.raw("content", "ingest", "--expected-digest", wrong, "a-reference", stdin="words")
    assert done.returncode != 0
    assert "unexpected commit digest" in done.stderr
    assert fresh.run("content", "ls", "-q") == ""


def test_an_open_ingest_is_active(fresh: Ctr) -> None:
    with subprocess.Popen(
        [*fresh.words, "content", "ingest", "slow-reference"], stdin=subprocess.PIPE
    ) as slow:
        assert slow.stdin is not None
        slow.stdin.write(b"x" * (2 << 20))
        slow.stdin.flush()
        deadline = time.monotonic() + 10
        while "slow-reference" not in fresh.run("content", "active"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        slow.stdin.close()
        assert slow.wait(10) == 0
    assert "slow-reference" not in fresh.run("content", "active")


# ---------------------------------------------------------------- snapshots


def chain_id(ctr: Ctr) -> str:
    rows = ctr.table("snapshots", "ls")
    return next(row[0] for row in rows if row[0].startswith("sha256:") and row[-1] == "Committed")


def test_a_snapshot_lives_from_prepare_to_removal(ctr: Ctr) -> None:
    parent, key = chain_id(ctr), "s-" + uuid.uuid4().hex[:8]
    ctr.run("snapshots", "prepare", key, parent)
    rows = ctr.table("snapshots", "ls")
    assert rows[0] == ["KEY", "PARENT", "KIND"]
    assert [key, parent, "Active"] in rows
    mounts = ctr.run("snapshots", "mounts", "/target", key)
    assert mounts.startswith("mount -t overlay overlay /target -o ")
    assert "upperdir=" in mounts
    assert "lowerdir=" in mounts
    assert '"Kind": "Active"' in ctr.run("snapshots", "info", key)
    assert key in ctr.run("snapshots", "tree")
    usage = ctr.table("snapshots", "usage", key)
    assert usage[0] == ["KEY", "SIZE", "INODES"]
    assert usage[1][0] == key
    ctr.run("snapshots", "label", key, "colour=blue")
    assert '"colour": "blue"' in ctr.run("snapshots", "info", key)
    ctr.run("snapshots", "commit", key + "-done", key)
    assert [key + "-done", parent, "Committed"] in ctr.table("snapshots", "ls")
    ctr.run("snapshots", "view", key + "-view", key + "-done")
    assert [key + "-view", key + "-done", "View"] in ctr.table("snapshots", "ls")
    assert "cannot remove snapshot with child" in ctr.refused("snapshots", "rm", key + "-done")
    ctr.run("snapshots", "rm", key + "-view")
    ctr.run("snapshots", "rm", key + "-done")
    assert key not in ctr.run("snapshots", "ls")


def test_a_snapshot_is_not_prepared_twice(ctr: Ctr) -> None:
    key = "s-" + uuid.uuid4().hex[:8]
    ctr.run("snapshots", "prepare", key)
    assert "already exists" in ctr.refused("snapshots", "prepare", key)
    ctr.run("snapshots", "rm", key)
    assert "not found" in ctr.refused("snapshots", "rm", key)


# ---------------------------------------------------------------- run


def test_run_prints_the_output_and_gives_the_exit_code(ctr: Ctr, name: str) -> None:
    assert ctr.run("run", "--rm", BUSYBOX, name, "echo", "hello") == "hello\n"
    assert ctr.run("run", "--rm", BUSYBOX, name, "sh", "-c", "exit 37", code=37) == ""


def test_run_passes_every_byte_of_a_large_output(ctr: Ctr, name: str) -> None:
    said = ctr.run("run", "--rm", BUSYBOX, name, "seq", "1", "100000")
    assert said == "".join(f"{n}\n" for n in range(1, 100001))


def test_run_keeps_stdout_and_stderr_apart(ctr: Ctr, name: str) -> None:
    done = ctr.raw("run", "--rm", BUSYBOX, name, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_run_feeds_stdin_until_it_ends(ctr: Ctr, name: str) -> None:
    # stdin is held open until the answer was seen: ctr tells of its end only once the task exists.
    with subprocess.Popen(
        [*ctr.words, "run", "--rm", BUSYBOX, name, "cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as client:  # fmt: skip
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("one\ntwo\n")
        client.stdin.flush()
        assert client.stdout.readline() == "one\n"
        assert client.stdout.readline() == "two\n"
        client.stdin.close()
        assert client.wait(20) == 0


def test_run_without_rm_leaves_a_container_and_its_snapshot(ctr: Ctr, name: str) -> None:
    ctr.run("run", BUSYBOX, name, "true")
    assert name in ctr.run("containers", "ls", "-q").split()
    assert name in ctr.run("snapshots", "ls")
    assert f'"{name}": already exists' in ctr.refused("run", BUSYBOX, name, "true")


def test_run_detached_leaves_a_running_task(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    assert status(ctr, name) == "RUNNING"


def test_run_of_a_missing_program_is_refused_and_leaves_no_task(ctr: Ctr, name: str) -> None:
    assert "/bin/never-was" in ctr.refused("run", "--rm", BUSYBOX, name, "/bin/never-was")
    assert name not in ctr.run("tasks", "ls")


def test_run_with_a_terminal_gives_the_container_a_terminal(ctr: Ctr, name: str) -> None:
    words = [
        *ctr.words,
        "run",
        "--rm",
        "-t",
        BUSYBOX,
        name,
        "sh",
        "-c",
        "tty; sleep 1; stty size; exit 5",
    ]
    output, code = on_a_terminal(words, rows=33, columns=101)
    assert "/dev/pts/" in output
    assert "33 101" in output
    assert code == 5


def test_a_terminal_takes_what_is_typed(ctr: Ctr, name: str) -> None:
    words = [*ctr.words, "run", "--rm", "-t", BUSYBOX, name, "sh"]
    output, code = on_a_terminal(words, typed="echo $((6*7))\nexit 3\n", after="#")
    assert "42" in output
    assert code == 3


def test_run_with_the_hosts_network_sees_the_hosts_interfaces(ctr: Ctr, name: str) -> None:
    def interfaces(text: str) -> set[str]:
        return {line.split(":")[0].strip() for line in text.splitlines() if ":" in line}

    said = ctr.run("run", "--rm", "--net-host", BUSYBOX, name, "cat", "/proc/net/dev")
    assert interfaces(said) == interfaces(Path("/proc/net/dev").read_text())
    alone = ctr.run("run", "--rm", BUSYBOX, name, "cat", "/proc/net/dev")
    assert "eth0" not in interfaces(alone)
    assert "lo" in interfaces(alone)


def test_run_with_a_memory_limit_limits_the_memory(ctr: Ctr, name: str) -> None:
    start(ctr, name, flags=("--memory-limit", str(64 << 20)))
    (row,) = [row for row in ctr.table("tasks", "ls") if row[0] == name]
    lines = Path(f"/proc/{row[1]}/cgroup").read_text().splitlines()
    group = next((x.split(":")[2] for x in lines if x.split(":")[1] == "memory"), None)
    if group is not None:
        limit = Path(f"/sys/fs/cgroup/memory{group}/memory.limit_in_bytes")
    else:
        limit = Path("/sys/fs/cgroup" + lines[0].split(":")[2]) / "memory.max"
    assert limit.read_text().strip() == str(64 << 20)


def test_run_with_env_sets_the_environment(ctr: Ctr, name: str) -> None:
    said = ctr.run("run", "--rm", "--env", "COLOUR=blue", BUSYBOX, name, "sh", "-c", "echo $COLOUR")
    assert said == "blue\n"


def test_run_with_a_mount_sees_the_hosts_files(ctr: Ctr, name: str, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the host\n")
    mount = f"type=bind,src={tmp_path},dst=/data,options=rbind:ro"
    said = ctr.run("run", "--rm", "--mount", mount, BUSYBOX, name, "cat", "/data/note")
    assert said == "from the host\n"
    done = ctr.raw("run", "--rm", "--mount", mount, BUSYBOX, name, "touch", "/data/new")
    assert done.returncode == 1
    assert "Read-only" in done.stderr


def test_run_read_only_cannot_write(ctr: Ctr, name: str) -> None:
    done = ctr.raw("run", "--rm", "--read-only", BUSYBOX, name, "touch", "/new")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr
    ctr.run("run", "--rm", BUSYBOX, name, "touch", "/new")


def test_run_from_a_root_filesystem(ctr: Ctr, name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    for folder in ("proc", "sys", "dev", "etc", "tmp", "run"):
        (root / folder).mkdir()
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    said = ctr.run("run", "--rm", "--rootfs", str(root), name, "/bin/busybox", "echo", "rooted")
    assert said == "rooted\n"


# ---------------------------------------------------------------- containers


def test_containers_are_listed_described_labelled_and_removed(ctr: Ctr, name: str) -> None:
    ctr.run("containers", "create", "--label", "colour=blue", BUSYBOX, name, "true")
    rows = ctr.table("containers", "ls")
    assert rows[0] == ["CONTAINER", "IMAGE", "RUNTIME"]
    assert [name, BUSYBOX, "io.containerd.runc.v2"] in rows
    info = ctr.run("containers", "info", name)
    assert f'"ID": "{name}"' in info
    assert '"colour": "blue"' in info
    assert '"Snapshotter": "overlayfs"' in info
    ctr.run("containers", "label", name, "colour=red")
    assert '"colour": "red"' in ctr.run("containers", "info", name)
    ctr.run("containers", "rm", name)
    assert name not in ctr.run("containers", "ls", "-q").split()
    assert name not in ctr.run("snapshots", "ls")


def test_an_unknown_container_is_not_found(ctr: Ctr) -> None:
    said = ctr.refused("containers", "info", "never-was")
    assert 'container "never-was" in namespace "default": not found' in said


def test_a_container_with_a_running_task_is_not_removed(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    assert "cannot delete a non stopped container" in ctr.refused("containers", "rm", name)


# ---------------------------------------------------------------- tasks


def test_a_task_lists_its_processes(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    rows = ctr.table("tasks", "ls")
    assert rows[0] == ["TASK", "PID", "STATUS"]
    pid = next(row[1] for row in rows if row[0] == name)
    assert ctr.table("tasks", "ps", name) == [["PID", "INFO"], [pid, "-"]]


def test_exec_runs_beside_the_task(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    assert ctr.run("tasks", "exec", "--exec-id", "e1", name, "echo", "beside") == "beside\n"
    ctr.run("tasks", "exec", "--exec-id", "e1", name, "sh", "-c", "exit 9", code=9)
    done = ctr.raw("tasks", "exec", "--exec-id", "e2", name, "cat", stdin="typed\n")
    assert done.stdout == "typed\n"
    said = ctr.refused("tasks", "exec", "--exec-id", "e3", name, "/bin/never-was")
    assert "never-was" in said
    assert status(ctr, name) == "RUNNING"


def test_exec_on_a_terminal_gets_a_terminal(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    words = [*ctr.words, "tasks", "exec", "-t", "--exec-id", "e1", name, "sh", "-c", "tty; exit 4"]
    output, code = on_a_terminal(words)
    assert "/dev/" in output
    assert code == 4


def test_a_paused_task_stands_still_until_it_is_resumed(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    ctr.run("tasks", "pause", name)
    assert status(ctr, name) == "PAUSED"
    ctr.run("tasks", "resume", name)
    assert status(ctr, name) == "RUNNING"


def test_metrics_show_memory_and_processes(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    said = ctr.run("tasks", "metrics", name)
    assert name in said
    assert "pids.current" in said
    assert re.search(r"memory\.usage(_in_bytes)? +\d+", said)


def test_a_killed_task_stops_with_the_signals_code(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    ctr.run("tasks", "kill", "-s", "SIGKILL", name)
    wait_for(ctr, name, "STOPPED")
    done = ctr.raw("tasks", "rm", name)
    assert "137" in done.stdout + done.stderr
    assert name not in ctr.run("tasks", "ls")


def test_kill_all_reaches_every_process(ctr: Ctr, name: str) -> None:
    start(ctr, name, "sh", "-c", "sleep 1000 & sleep 1000 & wait")
    ctr.run("tasks", "kill", "--all", "-s", "SIGKILL", name)
    wait_for(ctr, name, "STOPPED")


def test_a_running_task_is_not_removed(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    assert "must be stopped before deletion: running" in ctr.refused("tasks", "rm", name)


def test_a_task_is_started_from_a_container_and_again_after_its_removal(
    ctr: Ctr, name: str
) -> None:
    ctr.run("containers", "create", BUSYBOX, name, "cat", "/proc/self/comm", "/never-was")
    for _ in range(2):
        done = ctr.raw("tasks", "start", name)
        assert done.stdout == "cat\n"
        assert done.returncode == 1


def test_attach_reads_the_output_of_a_running_task(ctr: Ctr, name: str) -> None:
    first = subprocess.Popen(
        [*ctr.words, "run", BUSYBOX, name, "sh", "-c",
         "while ! test -e /go; do sleep 0.1; done; echo attached; exit 8"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(ctr, name, "RUNNING")
        first.kill()  # the client goes, the container stays
        first.communicate()
        second = subprocess.Popen(
            [*ctr.words, "tasks", "attach", name],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(0.5)
        ctr.run("tasks", "exec", "--exec-id", "go", name, "touch", "/go")
        said, complaint = second.communicate(timeout=20)
        assert said == "attached\n", complaint
        assert second.returncode == 8
    finally:
        first.kill()


def test_an_unknown_task_is_not_found(ctr: Ctr) -> None:
    assert "not found" in ctr.refused("tasks", "kill", "never-was")


# ---------------------------------------------------------------- events, leases


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


# ---------------------------------------------------------------- nothing is left


def test_a_removed_container_leaves_nothing_behind(ctr: Ctr, daemon: Daemon, name: str) -> None:
    ctr.run("run", "--rm", BUSYBOX, name, "true")
    assert name not in Path("/proc/self/mountinfo").read_text()
    with contextlib.suppress(FileNotFoundError):
        left = list((daemon.base / "state").rglob(f"*{name}*"))
        assert left == []
