"""`ctr run`."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from bench.daemons import Daemon
from driver import BUSYBOX, Ctr, Pair, start, status, until
from terminal import on_a_terminal

pytestmark = [pytest.mark.root, pytest.mark.slow]


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


def test_a_removed_container_leaves_nothing_behind(ctr: Ctr, daemon: Daemon, name: str) -> None:
    ctr.run("run", "--rm", BUSYBOX, name, "true")
    assert name not in Path("/proc/self/mountinfo").read_text()
    with contextlib.suppress(FileNotFoundError):
        left = list((daemon.base / "state").rglob(f"*{name}*"))
        assert left == []


SHOW = "env; pwd; ls -l /dev/fuse; grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; readlink $NS"


def test_run_gives_the_process_what_its_flags_say(pair: Pair, tmp_path: Path) -> None:
    """As many flags in one container as go together: both daemons give their process the same."""
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    (tmp_path / "env").write_text("FILED=1\n")
    (tmp_path / "seccomp.json").write_text('{"defaultAction": "SCMP_ACT_ALLOW"}')
    flags = {
        "--env": "NS=/proc/self/ns/uts", "--env-file": f"{tmp_path}/env", "--cwd": "/tmp",
        "--label": "a=b", "--annotation": "c=d", "--cap-add": "CAP_NET_ADMIN",
        "--cap-drop": "CAP_MKNOD", "--device": "/dev/null", "--with-ns": "uts:/proc/self/ns/uts",
        "--cgroup": "/ctr-test-one", "--cpus": "0.5", "--cpu-shares": "512",
        "--memory-limit": str(64 << 20), "--snapshotter": "native", "--platform": "linux/amd64",
        "--snapshotter-label": "e=f", "--pid-file": "@/run.pid", "--fifo-dir": "@/fifos",
        "--rootfs-propagation": "private", "--runtime": "io.containerd.runc.v2",
        "--rdt-class": "none", "--seccomp-profile": f"{tmp_path}/seccomp.json",
    }  # fmt: skip
    words = [word for flag in flags.items() for word in flag]
    words += ["--rm", "--allow-new-privs", "--seccomp", BUSYBOX]
    said = pair.same("run", *words, "one", "sh", "-c", SHOW.replace("ls -l /dev/fuse; ", ""))
    assert "FILED=1" in said
    assert "/tmp\n" in said
    assert str(Path("/proc/self/ns/uts").readlink()) in said
    assert "Seccomp:\t2" in said
    for ctr in pair:
        assert (ctr.daemon.base / "run.pid").read_text().isdigit()


def test_run_privileged_by_another_program_without_pivoting(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    flags = ("--rm", "--privileged", "--net-host", "--no-pivot", "--read-only")
    programs = ("--runc-binary", "runc", "--runc-root", "@/runc", "--runtime-config-path", "/none")
    show = "grep CapEff /proc/self/status; cat /proc/net/dev | wc -l"
    pair.same("run", *flags, *programs, BUSYBOX, "one", "sh", "-c", show)
    quota = ("--cpu-quota", "20000", "--cpu-period", "100000")
    assert pair.same("run", "--rm", *quota, BUSYBOX, "two", "echo", "slow") == "slow\n"


def test_run_writes_to_a_log_or_to_nothing(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    assert pair.same("run", "--rm", "--null-io", BUSYBOX, "one", "echo", "nobody hears") == ""
    pair.same("run", "--detach", "--log-uri", "file:///dev/null", BUSYBOX, "two", "true")
    for ctr in pair:
        log = ctr.daemon.base / "run.log"
        ctr.run("run", "--detach", "--log-uri", f"file://{log}", BUSYBOX, "three", "echo", "logged")
        until(lambda log=log: log.exists() and log.read_text() == "logged\n")
        for name in ("two", "three"):
            until(lambda ctr=ctr, name=name: status(ctr, name) == "STOPPED")
            ctr.run("tasks", "rm", name)
            ctr.run("containers", "rm", name)


def test_run_with_a_spec_of_ones_own(pair: Pair, tmp_path: Path) -> None:
    root = tmp_path / "root/bin"
    root.mkdir(parents=True)
    for folder in ("proc", "sys", "dev"):
        (tmp_path / "root" / folder).mkdir()
    shutil.copy("/bin/busybox", root / "busybox")
    spec = json.loads(pair.same("oci", "spec"))
    spec["process"]["args"] = ["/bin/busybox", "echo", "as specified"]
    spec["root"] = {"path": str(tmp_path / "root")}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    said = pair.same("run", "--rm", "--config", f"{tmp_path}/spec.json", "one")
    assert said == "as specified\n"


@pytest.mark.parametrize(
    "flags",
    [
        ("--gpus", "0"), ("--cni",), ("--apparmor-default-profile", "ctr-test"),
        ("--runc-systemd-cgroup",), ("--detach", "--rm"), ("--snapshotter", "never"),
    ],
)  # fmt: skip
def test_run_is_refused_where_the_host_lacks_something(pair: Pair, flags: tuple[str, ...]) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    pair.same("run", *flags, BUSYBOX, "one", "true", code=1)


def test_run_in_a_user_namespace_needs_a_root_that_it_may_enter(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
        maps = ("--uidmap", "0:1000:1000", "--gidmap", "0:1000:1000")
        said = ctr.refused("run", "--rm", *maps, "--remap-labels", BUSYBOX, "one", "id").lower()
        assert "permission denied" in said
