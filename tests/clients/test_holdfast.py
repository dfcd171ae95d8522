"""The `holdfast` command as people use it, against a daemon and without one."""

import json
import os
import re
import select
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

IMAGE = "busybox"


class Holdfast:
    """The command with the daemon's address."""

    def __init__(self, daemon: Daemon) -> None:
        self.words = [sys.executable, "-m", "holdfast", "--address", str(daemon.socket)]

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

    def run(self, *words: str, code: int = 0, stdin: str | None = None) -> str:
        done = self.raw(*words, stdin=stdin)
        said = f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == code, said
        return done.stdout

    def refused(self, *words: str, code: int = 1) -> str:
        done = self.raw(*words)
        said = f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert done.returncode == code, said
        return done.stderr

    def records(self, *words: str) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.run(*words, "--format", "json").splitlines()]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("holdfast")
    archive = base / "busybox.tar"
    busybox_image.build(archive)
    with running("holdfast", base) as started:
        assert Holdfast(started).run("import", str(archive)) == f"{busybox_image.DEFAULT_NAME}\n"
        yield started


@pytest.fixture
def holdfast(daemon: Daemon) -> Holdfast:
    return Holdfast(daemon)


@pytest.fixture
def name(holdfast: Holdfast) -> Iterator[str]:
    chosen = "h-" + uuid.uuid4().hex[:8]
    yield chosen
    holdfast.raw("rm", "--force", chosen)


def test_run_gives_the_containers_output_and_exit_code(holdfast: Holdfast) -> None:
    assert holdfast.run("run", "--rm", IMAGE, "echo", "hello") == "hello\n"
    assert holdfast.run("run", "--rm", IMAGE, "sh", "-c", "exit 7", code=7) == ""
    done = holdfast.raw("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_run_passes_every_byte(holdfast: Holdfast) -> None:
    said = holdfast.run("run", "--rm", IMAGE, "seq", "1", "50000")
    assert said == "".join(f"{n}\n" for n in range(1, 50001))


def test_run_with_stdin_passes_it_on_until_it_ends(holdfast: Holdfast) -> None:
    assert holdfast.run("run", "--rm", "-i", IMAGE, "cat", stdin="one\ntwo\n") == "one\ntwo\n"
    assert holdfast.run("run", "--rm", IMAGE, "cat", stdin="unheard\n") == ""


def test_run_on_a_terminal_gives_a_terminal_of_the_same_size(holdfast: Holdfast) -> None:
    words = [*holdfast.words, "run", "--rm", "-it", IMAGE]
    output, code = on_a_terminal(
        [*words, "sh", "-c", "sleep 0.5; stty size; exit 4"], rows=31, columns=97
    )
    assert "31 97" in output
    assert code == 4
    output, code = on_a_terminal([*words, "sh"], typed="echo $((6*7))\nexit 3\n", after="#")
    assert "42" in output
    assert code == 3


def test_run_takes_dockers_options(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the host\n")
    said = holdfast.run(
        "run", "--rm", "-e", "COLOUR=blue", "-w", "/tmp", "--hostname", "harbour",
        "-v", f"{tmp_path}:/data:ro", "--tmpfs", "/scratch", IMAGE,
        "sh", "-c", "echo $COLOUR; pwd; hostname; cat /data/note; touch /data/x; touch /scratch/y",
        code=0,
    )  # fmt: skip
    assert said == "blue\n/tmp\nharbour\nfrom the host\n"
    assert holdfast.run("run", "--rm", "-u", "user", IMAGE, "id", "-u") == "1000\n"
    assert holdfast.run("run", "--rm", "-u", "user", IMAGE, "id", "-G") == "1000 50\n"
    assert holdfast.run("run", "--rm", "-u", "5:6", IMAGE, "id", "-g") == "6\n"
    assert "Read-only" in holdfast.refused("run", "--rm", "--read-only", IMAGE, "touch", "/x")
    said = holdfast.run("run", "--rm", "--network", "host", IMAGE, "cat", "/proc/net/dev")
    assert len(said.splitlines()) == len(Path("/proc/net/dev").read_text().splitlines())


def test_run_with_a_memory_limit_kills_what_takes_more(holdfast: Holdfast, name: str) -> None:
    code = holdfast.raw(
        "run", "--rm", "--name", name, "-m", "16m", IMAGE, "sh", "-c", "tail /dev/zero"
    ).returncode
    assert code == 137


def test_run_of_what_does_not_exist_is_refused_and_leaves_nothing(
    holdfast: Holdfast, name: str
) -> None:
    never = ("run", "--rm", "--pull", "never", "nowhere.org/never:was", "true")
    assert "not found" in holdfast.refused(*never)
    said = holdfast.refused("run", "--name", name, IMAGE, "/bin/never-was")
    assert "never-was" in said
    assert len(said.splitlines()) == 1
    assert name not in holdfast.run("ps", "--all", "--quiet").split()
    assert name not in holdfast.run("snapshots", "--quiet").split()


def test_misuse_is_told_apart_from_refusal(holdfast: Holdfast) -> None:
    assert "No such command" in holdfast.refused("rum", code=2)
    assert "--volume" in holdfast.refused("run", "-v", "relative:/x", IMAGE, "true", code=2)
    assert "unknown signal" in holdfast.refused("kill", "-s", "NOVA", "x", code=2)
    assert holdfast.refused("wait", "never-was").startswith("holdfast: ")


def test_a_detached_container_is_listed_waited_for_and_keeps_its_output(
    holdfast: Holdfast, name: str
) -> None:
    script = "echo begun; echo complaint >&2; sleep 5; echo done; exit 5"
    assert holdfast.run("run", "-d", "--name", name, IMAGE, "sh", "-c", script) == f"{name}\n"
    (row,) = [r for r in holdfast.records("ps") if r["name"] == name]
    assert row["status"] == "running"
    assert row["image"] == busybox_image.DEFAULT_NAME
    assert Path(f"/proc/{row['pid']}").exists()
    assert holdfast.run("wait", name) == "5\n"
    assert holdfast.run("wait", name) == "5\n"
    done = holdfast.raw("logs", name)
    assert (done.stdout, done.stderr) == ("begun\ndone\n", "complaint\n")
    assert name not in holdfast.run("ps", "-q").split()
    (row,) = [r for r in holdfast.records("ps", "-a") if r["name"] == name]
    assert str(row["status"]).startswith("exited (5)")
    assert holdfast.run("rm", name) == f"{name}\n"
    assert "not found" in holdfast.refused("logs", name)


def test_logs_follow_until_the_end(holdfast: Holdfast, name: str) -> None:
    script = "for i in 1 2 3; do echo $i; sleep 0.3; done"
    holdfast.run("run", "-d", "--name", name, IMAGE, "sh", "-c", script)
    assert holdfast.run("logs", "-f", name) == "1\n2\n3\n"


def test_attach_shows_what_comes_and_gives_the_exit_code(holdfast: Holdfast, name: str) -> None:
    holdfast.run("run", "-d", "--name", name, IMAGE, "sh", "-c", "sleep 4; echo late; exit 6")
    done = holdfast.raw("attach", name)
    assert done.stdout == "late\n"
    assert done.returncode == 6


def test_exec_runs_beside_and_gives_its_own_code(holdfast: Holdfast, name: str) -> None:
    holdfast.run("run", "-d", "--name", name, IMAGE, "sleep", "1000")
    assert holdfast.run("exec", name, "echo", "beside") == "beside\n"
    assert holdfast.run("exec", name, "sh", "-c", "exit 9", code=9) == ""
    assert holdfast.run("exec", "-i", name, "cat", stdin="typed\n") == "typed\n"
    assert holdfast.run("exec", "-e", "A=b", "-w", "/tmp", name, "sh", "-c", "echo $A; pwd") == (
        "b\n/tmp\n"
    )
    output, code = on_a_terminal([*holdfast.words, "exec", "-it", name, "sh", "-c", "tty; exit 2"])
    assert "/dev/" in output
    assert code == 2
    assert holdfast.run("exec", "-d", name, "touch", "/made") == ""
    deadline = time.monotonic() + 10
    while holdfast.raw("exec", name, "test", "-e", "/made").returncode != 0:
        assert time.monotonic() < deadline


def test_rm_finishes_a_removal_that_was_cut_short(holdfast: Holdfast, name: str) -> None:
    holdfast.run("run", "--name", name, IMAGE, "true")
    holdfast.run("snapshots", "rm", name)
    assert holdfast.run("rm", name) == f"{name}\n"
    assert name not in holdfast.run("ps", "-a")


def test_pause_resume_kill_and_rm(holdfast: Holdfast, name: str) -> None:
    holdfast.run("run", "-d", "--name", name, IMAGE, "sleep", "1000")

    def status() -> object:
        return next(r["status"] for r in holdfast.records("ps", "-a") if r["name"] == name)

    assert holdfast.run("pause", name) == f"{name}\n"
    assert status() == "paused"
    assert holdfast.run("resume", name) == f"{name}\n"
    assert status() == "running"
    assert "must be stopped" in holdfast.refused("rm", name)
    assert holdfast.run("kill", "-s", "TERM", "--all", name) == f"{name}\n"
    holdfast.run("kill", name)
    assert holdfast.run("wait", name) in ("137\n", "143\n")
    assert holdfast.run("rm", name) == f"{name}\n"


def test_a_signal_to_the_command_is_the_containers(holdfast: Holdfast, name: str) -> None:
    script = "trap 'echo caught; exit 33' TERM; echo ready; while true; do sleep 0.1; done"
    with subprocess.Popen(
        [*holdfast.words, "run", "--rm", "--name", name, IMAGE, "sh", "-c", script],
        stdout=subprocess.PIPE, text=True,
    ) as client:  # fmt: skip
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.terminate()
        assert client.stdout.readline() == "caught\n"
        assert client.wait(20) == 33


def test_images_come_and_go(holdfast: Holdfast, daemon: Daemon, tmp_path: Path) -> None:
    other = "example.org/other:1"
    archive = tmp_path / "other.tar"
    busybox_image.build(archive, other, {"Labels": {"maintainer": "me"}})
    assert holdfast.run("import", str(archive)) == f"{other}\n"
    assert other in holdfast.run("images", "-q").split()
    assert re.match(r"NAME +DIGEST +CREATED +LABELS\n", holdfast.run("images"))
    copy = tmp_path / "copy.tar"
    holdfast.run("export", "-o", str(copy), other)
    assert holdfast.run("images", "rm", other) == f"{other}\n"
    assert other not in holdfast.run("images", "-q").split()
    with copy.open("rb") as data:
        done = subprocess.run([*holdfast.words, "import", "-"], stdin=data, capture_output=True)
    assert done.stdout.decode() == f"{other}\n", done.stderr
    assert holdfast.run("run", "--rm", other, "echo", "again") == "again\n"


def test_an_archive_that_is_none_is_refused(holdfast: Holdfast, tmp_path: Path) -> None:
    (tmp_path / "no.tar").write_bytes(b"this is no archive" * 1000)
    said = holdfast.refused("import", str(tmp_path / "no.tar"))
    assert said.splitlines()[-1].startswith("holdfast: tar: ")


def test_stores_are_listed(holdfast: Holdfast) -> None:
    assert any(row["kind"] == "committed" for row in holdfast.records("snapshots"))
    small = [row["digest"] for row in holdfast.records("content") if "MiB" not in str(row["size"])]
    texts = [holdfast.raw("content", "get", str(digest)).stdout for digest in small[:4]]
    assert any('"architecture"' in text for text in texts)


def test_the_daemon_tells_about_itself(holdfast: Holdfast, name: str) -> None:
    holdfast.run("run", "-d", "--name", name, IMAGE, "sleep", "1000")
    assert re.search(r"client +\S.*\ndaemon +\S", holdfast.run("version"))
    facts = json.loads(holdfast.run("info", "--format", "json"))
    assert facts["runtime"].split()[0] in ("crun", "runc")
    assert facts["cgroups"] in ("legacy", "hybrid", "unified")
    assert facts["guarantee"].startswith(("pins: exit", "subreapers: output"))
    tree = holdfast.run("tree")
    assert "holdfast  running" in tree
    assert name in tree
    root = json.loads(holdfast.run("tree", "--format", "json"))
    assert root["name"] == "holdfast"


def test_a_killed_actor_is_started_anew_around_its_container(holdfast: Holdfast, name: str) -> None:
    holdfast.run("run", "-d", "--name", name, IMAGE, "sleep", "1000")
    pid = next(r["pid"] for r in holdfast.records("ps") if r["name"] == name)
    actor = next(
        line.strip("│├└─ ").split("  ")[0]
        for line in holdfast.run("tree").splitlines()
        if "task:" in line and name in line
    )
    holdfast.run("kill-actor", actor)
    deadline = time.monotonic() + 10
    while not any(actor in str(r["child"]) for r in holdfast.records("crashes")):
        assert time.monotonic() < deadline
    (row,) = [r for r in holdfast.records("ps") if r["name"] == name]
    assert (row["pid"], row["status"]) == (pid, "running")
    assert holdfast.run("exec", name, "echo", "alive") == "alive\n"


def test_events_are_replayed_from_a_sequence_and_then_live(holdfast: Holdfast, name: str) -> None:
    since = json.loads(holdfast.run("info", "--format", "json"))["sequence"]
    holdfast.run("run", "--rm", "--name", name, IMAGE, "true")
    with subprocess.Popen(
        [*holdfast.words, "events", "--since", str(since), "--format", "json"],
        stdout=subprocess.PIPE,
        bufsize=0,  # select tells of the pipe, and must not miss lines that a buffer holds
    ) as listener:
        assert listener.stdout is not None
        topics: list[str] = []
        deadline = time.monotonic() + 20
        while "/tasks/delete" not in topics and time.monotonic() < deadline:
            ready, _, _ = select.select([listener.stdout], [], [], 1)
            if ready:
                event = json.loads(listener.stdout.readline())
                topics.append(event["topic"])
        listener.terminate()
    wanted = [topic for topic in topics if topic.startswith(("/tasks/", "/containers/"))]
    assert wanted[:5] == [
        "/containers/create", "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete",
    ]  # fmt: skip


def test_teardown_gives_back_what_the_kernel_keeps(tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    busybox_image.build(archive)
    base = tmp_path / "host"
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{base}/root"\nstate = "{base}/state"\n')
    teardown = ("system", "teardown", "--config", str(config))
    with running("holdfast", base, containers_live_on=True) as daemon:
        holdfast = Holdfast(daemon)
        holdfast.run("import", str(archive))
        holdfast.run("run", "-d", "--name", "stays", IMAGE, "sleep", "1000")
        assert "in use by another host" in holdfast.refused(*teardown)
    assert "pinned for default/stays; --force gives it up" in holdfast.refused(*teardown)
    assert holdfast.run(*teardown, "--force") == "removed\n"
    assert not (base / "state/vault").exists()
    with running("holdfast", base):
        (row,) = holdfast.records("ps")
        assert (row["name"], row["status"]) == ("stays", "running")
        holdfast.run("rm", "--force", "stays")
    assert holdfast.run(*teardown) == "nothing is kept\n"


def test_completion_is_a_shell_script(holdfast: Holdfast) -> None:
    script = holdfast.run("completion", "bash")
    assert "_HOLDFAST_COMPLETE" in script
    subprocess.run(["bash", "-n", "-c", script], check=True)


def test_without_a_daemon_commands_say_so(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "holdfast", "--address", str(tmp_path / "none.sock"), "ps"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "start holdfastd" in done.stderr


def test_without_a_daemon_run_brings_its_own_host(tmp_path: Path) -> None:
    archive = tmp_path / "busybox.tar"
    busybox_image.build(archive)
    with running("holdfast", tmp_path / "host") as daemon:
        Holdfast(daemon).run("import", str(archive))
    environment = {**os.environ, "HOLDFAST_CONFIG": str(tmp_path / "config.toml")}
    (tmp_path / "config.toml").write_text(
        f'root = "{tmp_path}/host/root"\nstate = "{tmp_path}/host/state"\n'
    )
    words = [sys.executable, "-m", "holdfast", "--address", str(tmp_path / "none.sock")]
    done = subprocess.run(
        [*words, "run", "--rm", IMAGE, "sh", "-c", "echo embedded; exit 11"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.stdout, done.returncode) == ("embedded\n", 11), done.stderr
