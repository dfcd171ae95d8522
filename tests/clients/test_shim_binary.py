"""Our shim as a binary: Debian's containerd runs containers under it, and so does our daemon."""

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from bench.daemons import Daemon, running
from examples import busybox_image
from house import IMAGE, SLEEP, House, ask_every_verb, clean, command_lines, until

from holdfast.api.proto.shim import bootstrap_pb2, task_v3_pb2
from holdfast.api.proto.types_pb2 import RuntimeInfo

NAME = "containerd-shim-holdfast-v1"
RUNTIME = "io.containerd.holdfast.v1"
LAUNCHER = f"#!{sys.executable}\nfrom holdfast.api.shimcommand import main\nmain()\n"
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("containerd"), reason="needs containerd"),
]


class UnderContainerd(House):
    """The same of a containerd."""

    def bundle(self, name: str) -> Path:
        return self.base / "state/io.containerd.runtime.v2.task" / self.namespace / name

    def shim(self, name: str) -> int:
        return int((self.bundle(name) / "solo.pid").read_text().split()[0])

    def inner_shim(self, name: str) -> int:
        return int((self.bundle(name) / "shim.lock").read_text().split()[0])

    def address(self, name: str) -> Path:
        return Path((self.bundle(name) / "address").read_text().removeprefix("unix://"))


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bin")
    path = folder / NAME
    path.write_text(LAUNCHER)
    path.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    busybox_image.build(path)
    return path


@pytest.fixture(scope="module", params=["containerd", "holdfast"])
def daemon(
    request: pytest.FixtureRequest, binary: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    with running(request.param, tmp_path_factory.mktemp(request.param)) as daemon:
        yield daemon


@pytest.fixture
def house(daemon: Daemon, archive: Path) -> Iterator[House]:
    kind = House if daemon.kind == "holdfast" else UnderContainerd
    house = kind(daemon.base, f"b-{uuid.uuid4().hex[:8]}", daemon)
    house.ctr("images", "import", str(archive))
    yield house
    clean(house)


@contextlib.contextmanager
def listening(house: House) -> Iterator[Callable[[str], list[str]]]:
    """`ctr events` for the length of a block: gives the topics of tasks up to one, without their
    common prefix."""
    words = ["ctr", "--address", str(house.daemon.socket), "--namespace", house.namespace]
    process = subprocess.Popen([*words, "events"], stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    lines = process.stdout

    def topics_until(topic: str) -> list[str]:
        found: list[str] = []
        while topic not in found:
            line = lines.readline().decode()
            assert line, f"no {topic} after {found}"
            if f" {house.namespace} " in line and " /tasks/" in line:
                found.append(line.split("/tasks/")[1].split()[0])
        return found

    try:
        # It says nothing when it has begun: what is told until then is lost to it.
        while not select.select([lines], [], [], 0.1)[0]:
            name = f"n-{uuid.uuid4().hex}"
            house.ctr("namespaces", "create", name)
            house.ctr("namespaces", "rm", name)
        yield topics_until
    finally:
        process.kill()
        process.communicate()


def test_a_container_runs_to_its_end_and_leaves_nothing(house: House) -> None:
    words = ("run", "--rm", "--runtime", RUNTIME, IMAGE, "c", "sh", "-c", "echo hello; exit 7")
    with listening(house) as topics_until:
        assert house.ctr(*words, code=7) == "hello\n"
        assert topics_until("delete") == ["create", "start", "exit", "delete"]
    until(lambda: not house.left())


def test_every_verb_reaches_it(house: House) -> None:
    with listening(house) as topics_until:
        address = ask_every_verb(house, RUNTIME)
        assert topics_until("delete") == [
            *("create", "start", "exec-added", "exec-started", "exit", "paused", "resumed"),
            *("exec-added", "exec-started", "exit", "exit", "delete"),
        ]
    until(lambda: not address.exists())


def test_its_death_is_the_end_of_the_container(house: House) -> None:
    house.run("c", *SLEEP, runtime=RUNTIME)
    address, pid = house.address("c"), int(house.ctr("tasks", "ls").split()[-2])
    os.kill(house.shim("c"), signal.SIGKILL)
    # containerd 1.6 forgets such a task by itself, and ours tells how it ended.
    until(lambda: house.status("c") in ("STOPPED", "GONE"))
    until(lambda: not Path(f"/proc/{pid}").exists())
    house.remove("c")
    assert not address.exists()


def test_a_command_that_is_not_there_is_told_in_the_runtimes_words(house: House) -> None:
    done = house.raw("run", "--rm", "--runtime", RUNTIME, IMAGE, "c", "/no/such/command")
    assert done.returncode != 0
    assert "/no/such/command" in done.stderr
    until(lambda: not house.left())


def test_a_containerd_that_is_killed_finds_it_again(
    binary: Path, archive: Path, tmp_path: Path
) -> None:
    namespace = f"b-{uuid.uuid4().hex[:8]}"
    with running("containerd", tmp_path, containers_live_on=True) as daemon:
        house = UnderContainerd(tmp_path, namespace, daemon)
        house.ctr("images", "import", str(archive))
        house.run("c", *SLEEP, runtime=RUNTIME)
        house.run("ends", "sh", "-c", "sleep 0.5; exit 5", runtime=RUNTIME)
        os.kill(daemon.pid, signal.SIGKILL)
    # What stands behind it may die too: another takes its place.
    inner = house.inner_shim("c")
    fork_server = int(Path(f"/proc/{inner}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"forkserver" in Path(f"/proc/{fork_server}/cmdline").read_bytes()
    os.kill(fork_server, signal.SIGKILL)
    os.kill(inner, signal.SIGKILL)
    until(lambda: house.inner_shim("c") != inner)
    with running("containerd", tmp_path) as daemon:
        house = UnderContainerd(tmp_path, namespace, daemon)
        until(lambda: house.status("ends") == "STOPPED")
        assert house.status("c") == "RUNNING"
        house.ctr("tasks", "exec", "--exec-id", "e", "c", "sh", "-c", "exit 4", code=4)
        house.ctr("tasks", "kill", "--signal", "SIGKILL", "c")
        until(lambda: house.status("c") == "STOPPED")
        assert "code 5" in house.raw("tasks", "rm", "ends").stderr
        assert "code 137" in house.raw("tasks", "rm", "c").stderr
        for name in ("c", "ends"):
            house.ctr("containers", "rm", name)
        until(lambda: not house.left())


def test_it_says_what_it_is(binary: Path) -> None:
    said = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{NAME}:\n  Version:  ")
    words = [binary, "-info"]
    info = subprocess.run(words, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert RuntimeInfo.FromString(info.stdout).name == RUNTIME
    done = subprocess.run([binary, "start"], capture_output=True, text=True, check=False)
    assert (done.returncode, "namespace cannot be empty" in done.stderr) == (1, True)


@pytest.mark.parametrize("asks", ["plain", "json", "protobuf"])
def test_it_answers_in_the_words_of_who_asks(binary: Path, tmp_path: Path, asks: str) -> None:
    flags = ["-namespace", "n", "-id", "c", "-address", f"{tmp_path}/d", "-publish-binary", "x"]
    environment = {k: v for k, v in os.environ.items() if k != "MAX_SHIM_VERSION"}
    if asks == "json":
        environment["MAX_SHIM_VERSION"] = "2"
    params = bootstrap_pb2.BootstrapParams(instance_id="c", namespace="n").SerializeToString()

    def start() -> bytes:
        return subprocess.run(
            [binary, *flags, "start"],
            cwd=tmp_path,
            env=environment,
            input=params if asks == "protobuf" else b"",
            capture_output=True,
            check=True,
        ).stdout

    said = start()
    address = (tmp_path / "address").read_text()
    try:
        match asks:
            case "plain":
                assert said.decode() == address
            case "json":
                assert (b'"version": 2' in said, address.encode() in said) == (True, True)
            case _:
                result = bootstrap_pb2.BootstrapResult.FromString(said)
                assert (result.version, result.address) == (3, address)
        assert start() == said  # and left no second one behind
        until((tmp_path / "solo.pid").exists)
    finally:
        done = subprocess.run(
            [binary, *flags, "-bundle", tmp_path, "delete"],
            cwd=tmp_path, env=environment, capture_output=True, check=True,
        )  # fmt: skip
    assert task_v3_pb2.DeleteResponse.FromString(done.stdout).exit_status == 137
    assert not Path(address.removeprefix("unix://")).exists()
    until(lambda: not [words for words in command_lines() if f"{tmp_path}/d" in words])
