"""Containers under Debian's own shim, started and supervised by the daemon; `ctr` asks for it.

By the path of its binary, and by a name that means a binary in PATH.
"""

import os
import signal
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
from google.protobuf.any_pb2 import Any as AnyMessage
from house import IMAGE, SHIM, SLEEP, House, ask_every_verb, clean, until

from holdfast.actors.failpoints import VARIABLE
from holdfast.api.proto.events_pb2 import TaskExit
from holdfast.api.proto.shim import bootstrap_pb2

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not SHIM, reason="needs containerd's shim"),
]

NAMED = "io.containerd.other.v1"


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A name for the same shim: a link to it in a directory of PATH."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "containerd-shim-other-v1").symlink_to(SHIM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    busybox_image.build(path)
    return path


@pytest.fixture(scope="module")
def base(
    named: None, archive: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Daemon]]:
    folder = tmp_path_factory.mktemp("foreign")
    with running("holdfast", folder) as daemon:
        yield folder, daemon


@pytest.fixture
def house(base: tuple[Path, Daemon], archive: Path) -> Iterator[House]:
    """In a namespace of the test's own; what it ran is ended."""
    house = House(base[0], f"f-{uuid.uuid4().hex[:8]}", base[1])
    house.ctr("images", "import", str(archive))
    yield house
    clean(house)


@pytest.mark.parametrize("runtime", [SHIM, NAMED])
def test_a_container_runs_to_its_end_and_leaves_nothing(house: House, runtime: str) -> None:
    words = ("run", "--rm", "--runtime", runtime, IMAGE, "c", "sh", "-c", "echo hello; exit 7")
    assert house.ctr(*words, code=7) == "hello\n"
    topics = ["create", "start", "exit", "delete"]
    events = house.events()
    assert [topic for topic, _ in events] == topics
    assert [event["exit_status"] for _, event in events if "exit_status" in event] == [7, 7]
    until(lambda: not house.left())


def test_every_verb_reaches_the_shim(house: House) -> None:
    address = ask_every_verb(house, NAMED)
    topics = [topic for topic, _ in house.events()]
    exits = {e["id"]: e["exit_status"] for t, e in house.events("exit")}
    assert exits == {"c": 9, "e": 3, "f": 137}
    assert topics[:6] == ["create", "start", "exec-added", "exec-started", "exit", "paused"]
    assert topics[6:] == [
        *("resumed", "exec-added", "exec-started", "exit", "exit", "delete"),
    ]
    until(lambda: not address.exists())


def test_the_death_of_a_shim_is_told_as_the_end_of_its_processes(house: House) -> None:
    house.run("c", *SLEEP)
    house.ctr("tasks", "exec", "--detach", "--exec-id", "e", "c", *SLEEP)
    address = house.address("c")
    os.kill(house.shim("c"), signal.SIGKILL)
    until(lambda: house.status("c") == "STOPPED")
    exits = [(event["id"], event["exit_status"]) for _, event in house.events("exit")]
    assert exits == [("e", 255), ("c", 137)]  # 137 is the word of the binary's delete
    assert house.raw("tasks", "exec", "--exec-id", "g", "c", "true").returncode != 0
    house.remove("c")
    assert [topic for topic, _ in house.events()][-1] == "delete"
    assert not address.exists()


def test_the_death_of_a_shim_whose_binary_cannot_tell_is_an_unknown_end(
    house: House, tmp_path: Path
) -> None:
    binary = tmp_path / f"containerd-shim-{house.namespace}"
    script = f'#!/bin/sh\ncase "$*" in *delete) {SHIM} "$@" >/dev/null; exit 1;; esac\n'
    binary.write_text(f'{script}exec {SHIM} "$@"\n')
    binary.chmod(0o755)
    house.run("c", *SLEEP, runtime=str(binary))
    os.kill(house.shim("c"), signal.SIGKILL)
    until(lambda: house.status("c") == "STOPPED")
    assert [event["exit_status"] for _, event in house.events("exit")] == [255]
    house.remove("c")


def test_a_shim_that_reads_and_prints_protobuf_is_understood(house: House, tmp_path: Path) -> None:
    """As since containerd 2.3: it takes no other input, and its answer is a message."""
    binary = tmp_path / "containerd-shim-new"
    binary.write_text(f"""#!{sys.executable}
import os, subprocess, sys
from holdfast.api.proto.shim.bootstrap_pb2 import BootstrapParams, BootstrapResult
if sys.argv[-1] != "start":
    os.execv("{SHIM}", sys.argv)
params = BootstrapParams.FromString(sys.stdin.buffer.read())
if params.instance_id != "c" or params.namespace != "{house.namespace}":
    sys.exit("no parameters")
done = subprocess.run(["{SHIM}", *sys.argv[1:]], capture_output=True, stdin=subprocess.DEVNULL)
address = done.stdout.decode().strip()
result = BootstrapResult(version=2, address=address, protocol="ttrpc")
sys.stdout.buffer.write(result.SerializeToString())
""")
    binary.chmod(0o755)
    words = ("run", "--rm", "--runtime", str(binary), IMAGE, "c", "sh", "-c", "exit 6")
    house.ctr(*words, code=6)
    until(lambda: not house.left())


def test_a_shim_tells_events_by_the_publish_binary(house: House, tmp_path: Path) -> None:
    """What it tells of itself is told; what it tells of its task the daemon tells by itself."""
    binary = tmp_path / "containerd-shim-telling"
    for name, event in {"own": TaskExit(exit_status=3), "exit": TaskExit(container_id="c")}.items():
        packed = AnyMessage(type_url="containerd.events.TaskExit", value=event.SerializeToString())
        (tmp_path / name).write_bytes(packed.SerializeToString())
    binary.write_text(f"""#!/bin/sh
case "$*" in *start)
  "$6" -address "$4" publish -topic /tasks/own -namespace "$2" <{tmp_path}/own &&
  "$6" -address "$4" publish -topic /tasks/exit -namespace "$2" <{tmp_path}/exit || exit 1
esac
exec {SHIM} "$@"
""")
    binary.chmod(0o755)
    house.run("c", *SLEEP, runtime=str(binary))
    events = house.events()
    assert events[0] == ("own", {"exit_status": 3})
    assert [topic for topic, _ in events] == ["own", "create", "start"]
    # Want of memory is what a daemon has from such a shim alone.
    program = Path(sys.executable).with_name("holdfast-containerd")
    oom = AnyMessage(type_url="containerd.events.TaskOOM", value=b"\n\x01c").SerializeToString()
    words = ["-address", str(house.daemon.socket), "publish", "-namespace", house.namespace]
    subprocess.run([program, *words, "-topic", "/tasks/oom"], input=oom, check=True)
    until(lambda: house.events("oom") == [("oom", {"container_id": "c"})])


def test_a_shim_without_ttrpc_runs_and_its_events_are_told_once(
    house: House, tmp_path: Path
) -> None:
    """Our own as such a binary; one that cannot tell its events tries again, and lives."""
    binary = tmp_path / f"containerd-shim-{house.namespace}"
    shim = Path(sys.executable).with_name("containerd-shim-holdfast-v1")
    program = tmp_path / "publish"
    calls = tmp_path / "calls"
    program.write_text(f"""#!/bin/sh
echo "$*" >>{calls}
test "$(wc -l <{calls})" -gt 1 || exit 1
exec {Path(sys.executable).with_name("holdfast-containerd")} "$@"
""")
    binary.write_text(f"""#!/bin/sh
unset TTRPC_ADDRESS
test "$6" = "{Path(sys.executable).with_name("holdfast-containerd")}" || exit 1
exec {shim} "$1" "$2" "$3" "$4" "$5" {program} "$7" "$8" "$9"
""")
    for file in (binary, program):
        file.chmod(0o755)
    words = ("run", "--rm", "--runtime", str(binary), IMAGE, "c", "sh", "-c", "exit 7")
    house.ctr(*words, code=7)
    topics = ["create", "start", "exit", "delete"]
    assert [topic for topic, _ in house.events()] == topics
    until(lambda: not house.left())
    told = [line.rpartition("/")[2] for line in calls.read_text().splitlines()]
    # The last one's time is short: a shim that is shut down does not wait for long.
    assert told[:4] == ["create", *topics[:3]]


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("io.containerd.absent.v1", 'binary not installed "containerd-shim-absent-v1"'),
        ("/no/such/shim", "binary not installed"),
        ("nonsense", "invalid runtime name nonsense"),
        ("/bin/false", "/bin/false start: exit status 1"),
        ("/bin/true", "speaks"),
    ],
)
def test_a_shim_that_does_not_start_is_a_refusal_and_leaves_nothing(
    house: House, runtime: str, told: str
) -> None:
    done = house.raw("run", "--rm", "--runtime", runtime, IMAGE, "c", "true")
    assert done.returncode != 0
    assert told in done.stderr
    assert house.status("c") == "GONE"
    assert not house.left()


def test_options_are_handed_on_as_they_are(house: House, tmp_path: Path) -> None:
    """In both forms: a shim that refuses the old one is asked with the new."""
    binary = tmp_path / "containerd-shim-options"
    binary.write_text(f"#!/bin/sh\ncat > {tmp_path}/$$.input\necho no thanks >&2\nexit 1\n")
    binary.chmod(0o755)
    words = ("run", "--runtime", str(binary), "--runtime-config-path", "/etc/it.toml", IMAGE, "c")
    done = house.raw(*words)
    assert "no thanks" in done.stderr
    told = [path.read_bytes() for path in sorted(tmp_path.glob("*.input"), key=os.path.getmtime)]
    options = AnyMessage.FromString(told[0])
    assert options.type_url == "runtimeoptions.v1.Options"
    assert b"/etc/it.toml" in options.value
    params = bootstrap_pb2.BootstrapParams.FromString(told[1])
    assert [extension.value for extension in params.extensions] == [options]
    house.ctr("containers", "rm", "c")


@pytest.fixture
def namespace() -> Iterator[str]:
    """For tests that kill their daemon: what it ran is ended, whatever became of the test."""
    name = f"f-{uuid.uuid4().hex[:8]}"
    yield name
    for folder, _, files in os.walk("/sys/fs/cgroup"):
        if f"/{name}/" in folder and "cgroup.procs" in files:
            for pid in Path(folder, "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)


def test_a_killed_daemon_takes_its_shims_up_again(
    named: None, namespace: str, archive: Path, tmp_path: Path
) -> None:
    with running("holdfast", tmp_path, containers_live_on=True) as daemon:
        house = House(tmp_path, namespace, daemon)
        house.ctr("images", "import", str(archive))
        house.run("lives", *SLEEP, runtime=NAMED)
        house.run("ends", "sh", "-c", "sleep 1; exit 5")
        house.run("dies", *SLEEP)
        house.ctr("tasks", "exec", "--detach", "--exec-id", "e", "lives", "sh", "-c", "sleep 1")
        os.kill(daemon.pid, signal.SIGKILL)
    os.kill(house.shim("dies"), signal.SIGKILL)
    time.sleep(1.5)
    with running("holdfast", tmp_path) as daemon:
        house = House(tmp_path, namespace, daemon)
        until(lambda: house.status("ends") == "STOPPED")
        until(lambda: house.status("dies") == "STOPPED")
        assert house.status("lives") == "RUNNING"
        house.ctr("tasks", "exec", "--exec-id", "g", "lives", "sh", "-c", "exit 4", code=4)
        os.kill(house.shim("lives"), signal.SIGKILL)
        until(lambda: house.status("lives") == "STOPPED")
        exits = sorted((e["id"], e.get("exit_status", 0)) for _, e in house.events("exit"))
        assert exits == [("dies", 137), ("e", 0), ("ends", 5), ("g", 4), ("lives", 137)]
        for name in ("lives", "ends", "dies"):
            house.ctr("tasks", "rm", name, code=None)
            house.ctr("containers", "rm", name)
        until(lambda: not house.left())


@pytest.mark.parametrize("point", ["foreign.start", "foreign.started", "task.create.made"])
def test_a_daemon_that_dies_over_a_create_leaves_no_shim(
    point: str, namespace: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"daemon:{point}=kill")
    with running("holdfast", tmp_path, containers_live_on=True) as daemon:
        house = House(tmp_path, namespace, daemon)
        house.ctr("images", "import", str(archive))
        house.raw("run", "--detach", "--runtime", SHIM, IMAGE, "c", *SLEEP)
        until(lambda: not Path(f"/proc/{daemon.pid}/exe").exists())
    monkeypatch.delenv(VARIABLE)
    with running("holdfast", tmp_path) as daemon:
        house = House(tmp_path, namespace, daemon)
        until(lambda: not house.left())
        assert house.status("c") == "GONE"


@pytest.mark.parametrize(
    "point",
    ["task.delete.shim", "task.delete.deleted", "task.delete.recorded", "task.delete.shim_ended"],
)
def test_a_daemon_that_dies_over_a_delete_leaves_no_shim(
    point: str, namespace: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"daemon:{point}=kill")
    with running("holdfast", tmp_path, containers_live_on=True) as daemon:
        house = House(tmp_path, namespace, daemon)
        house.ctr("images", "import", str(archive))
        house.run("c", "sh", "-c", "exit 3")
        until(lambda: house.status("c") == "STOPPED")
        house.raw("tasks", "rm", "c")
        until(lambda: not Path(f"/proc/{daemon.pid}/exe").exists())
    monkeypatch.delenv(VARIABLE)
    with running("holdfast", tmp_path) as daemon:
        house = House(tmp_path, namespace, daemon)
        house.raw("tasks", "rm", "c")
        until(lambda: not house.left())
        told = [(topic, e["exit_status"]) for topic, e in house.events("exit", "delete")]
        assert told == [("exit", 3), ("delete", 3)]
