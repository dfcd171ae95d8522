"""Debian's own dockerd runs its containers on Holdfast, and everything a Docker user does works.

What stands here of Docker's words and exit codes is what the same dockerd says on containerd.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from dockerhost import IMAGE, DockerHost, until
from terminal import on_a_terminal

pytestmark = [pytest.mark.root, pytest.mark.slow]

NO_NETWORK = ("--network", "none")
COUNT = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done"
FILL_MEMORY = "tail -f /dev/zero"
LITTLE_MEMORY = ("-m", "16m", "--memory-swap", "16m")


@pytest.fixture(scope="session")
def host() -> Iterator[DockerHost]:
    with DockerHost.open() as opened:
        yield opened


@pytest.fixture
def name(host: DockerHost) -> Iterator[str]:
    """A container name that is free, and free again afterwards."""
    chosen = "c-" + uuid.uuid4().hex[:8]
    yield chosen
    host.raw("rm", "-f", chosen)


@pytest.fixture(scope="module")
def web(host: DockerHost) -> Iterator[str]:
    """A container that runs, for tests that leave it running."""
    start(host, "web", "sleep 1000")
    yield "web"
    host.raw("rm", "-f", "web")


def start(host: DockerHost, name: str, script: str, *flags: str) -> None:
    words = ("run", "-d", "--name", name, *NO_NETWORK, *flags, IMAGE, "sh", "-c", script)
    assert host.docker(*words).strip()


def once(host: DockerHost, *words: str, code: int = 0, stdin: str | None = None) -> str:
    """A container for one command: `once(host, "-i", IMAGE, "cat")`."""
    return host.docker("run", "--rm", *NO_NETWORK, *words, code=code, stdin=stdin)


# ---------------------------------------------------------------- run


def test_run_gives_output_and_exit_code(host: DockerHost) -> None:
    script = "echo out; echo err >&2; exit 37"
    done = host.raw("run", "--rm", *NO_NETWORK, IMAGE, "sh", "-c", script)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 37)


def test_run_feeds_stdin_and_loses_no_byte(host: DockerHost) -> None:
    sent = "".join(f"{number}\n" for number in range(100_000))
    assert once(host, "-i", IMAGE, "cat", stdin=sent) == sent


def test_a_missing_program_is_127_and_leaves_no_task(host: DockerHost) -> None:
    before = host.tasks()
    done = host.raw("run", "--rm", *NO_NETWORK, IMAGE, "nonesuch")
    assert done.returncode == 127
    assert 'exec: "nonesuch": executable file not found in $PATH' in done.stderr
    assert host.raw("run", "--rm", *NO_NETWORK, IMAGE, "/etc/passwd").returncode == 126
    assert host.tasks() == before


def test_a_terminal_has_its_size_takes_what_is_typed_and_gives_the_exit_code(
    host: DockerHost,
) -> None:
    words = host.words("run", "--rm", "-it", *NO_NETWORK, IMAGE, "sh")
    typed = "sleep 0.5; tty; stty size; exit 5\n"  # the size comes after the start
    seen, code = on_a_terminal(words, typed=typed, after="/ #", rows=33, columns=101)
    assert "/dev/pts/" in seen
    assert "33 101" in seen
    assert code == 5


def test_what_docker_asks_for_is_what_the_container_has(host: DockerHost, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("given")
    tmp_path.chmod(0o755)  # the user in there has no capability
    asked = "-m 64m --pids-limit 20 --ulimit nofile=99:99 --cap-drop ALL --read-only --tmpfs /t"
    asked += " --hostname here -e COLOUR=blue -u user -w /tmp --init"
    script = (
        "tr '\\0' ' ' </proc/1/cmdline; echo; hostname; echo $COLOUR; id -un; pwd; ulimit -n;"
        "grep CapEff /proc/self/status; cat /hf/given; echo; ls /sys/class/net;"
        "touch /t/x && echo tmpfs; touch /tmp/x || echo read-only"
    )
    flags = [*asked.split(), "-v", f"{tmp_path}:/hf:ro"]
    said = once(host, *flags, IMAGE, "sh", "-c", script).splitlines()
    assert said[0].startswith("/sbin/docker-init -- sh -c ")
    no_capability = "CapEff:\t" + "0" * 16
    assert said[1:] == [
        "here", "blue", "user", "/tmp", "99", no_capability, "given", "lo", "tmpfs", "read-only"
    ]  # fmt: skip


def test_the_hosts_network_is_the_hosts(host: DockerHost) -> None:
    said = host.docker("run", "--rm", "--network", "host", IMAGE, "ls", "/sys/class/net")
    assert set(said.split()) == set(os.listdir("/sys/class/net"))


def test_one_container_lives_in_the_namespaces_of_another(host: DockerHost, web: str) -> None:
    joined = ("--network", f"container:{web}", "--pid", f"container:{web}")
    said = host.docker("run", "--rm", *joined, IMAGE, "ps", "-o", "pid,args")
    assert "1 sleep 1000" in said


def test_crun_serves_docker_too(host: DockerHost) -> None:
    script = "cat; exit 4"
    flags = ("-i", "--runtime", "crun")
    assert once(host, *flags, IMAGE, "sh", "-c", script, code=4, stdin="hello") == "hello"


def test_eight_at_once_each_get_their_own(host: DockerHost) -> None:
    def one(number: int) -> str:
        return once(host, IMAGE, "sh", "-c", f"echo {number}; exit {number}", code=number)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [f"{number}\n" for number in range(8)]


# ---------------------------------------------------------------- a container that runs


def test_docker_and_holdfast_tell_the_same(host: DockerHost, web: str) -> None:
    ids = {host.docker("inspect", "-f", "{{.Id}}", web).strip(): host.state(web, "Pid")}
    assert [task for task in host.tasks() if task[0] in ids] == [
        [id, pid, "RUNNING"] for id, pid in ids.items()
    ]


def test_exec_gives_output_and_exit_code(host: DockerHost, web: str) -> None:
    assert host.docker("exec", web, "sh", "-c", "echo in; exit 9", code=9) == "in\n"
    assert host.docker("exec", "-i", web, "cat", stdin="word\n") == "word\n"
    flags = ("-u", "user", "-w", "/home", "-e", "COLOUR=red")
    said = host.docker("exec", *flags, web, "sh", "-c", "id -un; pwd; echo $COLOUR")
    assert said == "user\n/home\nred\n"
    assert "not found" in host.docker("exec", web, "nonesuch", code=126)


def test_exec_with_a_terminal_and_in_the_background(host: DockerHost, web: str) -> None:
    seen, code = on_a_terminal(host.words("exec", "-it", web, "sh"), "tty; exit 6\n", "/ #")
    assert "/dev/pts/" in seen
    assert code == 6
    host.docker("exec", "-d", web, "touch", "/tmp/background")
    until(lambda: host.raw("exec", web, "ls", "/tmp/background").returncode == 0, "it was touched")


def test_top_and_stats_see_the_processes(host: DockerHost, web: str) -> None:
    assert "sleep 1000" in host.docker("top", web)
    said = json.loads(host.docker("stats", "--no-stream", "--format", "{{json .}}", web))
    assert said["PIDs"] == "1"
    assert not said["MemUsage"].startswith("0B")


def test_pause_freezes_and_unpause_thaws(host: DockerHost, web: str) -> None:
    host.docker("pause", web)
    assert host.state(web, "Status") == "paused"
    assert [host.state(web, "Pid"), "PAUSED"] in [task[1:] for task in host.tasks()]
    assert "is paused" in host.raw("exec", web, "true").stderr
    host.docker("unpause", web)
    assert host.state(web, "Status") == "running"
    assert host.docker("exec", web, "echo", "thawed") == "thawed\n"


def test_update_changes_the_kernels_limit(host: DockerHost, web: str) -> None:
    host.docker("update", "-m", "80m", "--memory-swap", "160m", "--pids-limit", "50", web)
    pid = host.state(web, "Pid")
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    path = next(line.split(":")[2] for line in lines if ":memory:" in line or line[:3] == "0::")
    files = ("memory/{}/memory.limit_in_bytes", "{}/memory.max", "unified/{}/memory.max")
    limits = [Path("/sys/fs/cgroup", file.format(path.strip("/"))) for file in files]
    assert [int(file.read_text()) for file in limits if file.exists()] == [80 << 20]


def test_cp_goes_both_ways(host: DockerHost, web: str, tmp_path: Path) -> None:
    (tmp_path / "to").write_text("there and back")
    host.docker("cp", str(tmp_path / "to"), f"{web}:/tmp/there")
    host.docker("cp", f"{web}:/tmp/there", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "there and back"
    assert "A /tmp/there" in host.docker("diff", web).splitlines()


# ---------------------------------------------------------------- a container's life


def test_a_life_from_create_to_rm_with_its_events(host: DockerHost, name: str) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done"
    host.docker("create", "--name", name, *NO_NETWORK, IMAGE, "sh", "-c", script)
    began = host.docker("inspect", "-f", "{{.Created}}", name).strip()
    host.docker("start", name)
    until(lambda: host.docker("logs", name) == "up\n", "the trap is set")
    assert "cannot remove a running container" in host.raw("rm", name).stderr
    host.docker("stop", "-t", "20", name)
    assert host.state(name, "ExitCode") == "3"
    assert host.docker("logs", name) == "up\nbye\n"
    host.docker("start", name)
    first = host.state(name, "Pid")
    host.docker("restart", "-t", "0", name)
    assert host.state(name, "Pid") not in (first, "0")
    host.docker("kill", name)
    assert host.docker("wait", name) == "137\n"
    id = host.docker("inspect", "-f", "{{.Id}}", name).strip()
    host.docker("rm", name)
    assert id not in [task[0] for task in host.tasks()]
    words = ("--since", began, "--until", str(time.time()), "--format", "{{.Action}}")
    said = host.docker("events", *words, "--filter", f"container={name}").split()
    assert (said[0], said[-1]) == ("create", "destroy")
    assert [said.count(action) for action in ("start", "die", "stop", "restart")] == [3, 3, 2, 1]


def test_start_attaches_to_what_was_created(host: DockerHost, name: str) -> None:
    host.docker("create", "-i", "--name", name, *NO_NETWORK, IMAGE, "sh", "-c", "cat; exit 8")
    assert host.docker("start", "-ai", name, code=8, stdin="typed\n") == "typed\n"


def test_attach_and_logs_follow_to_the_end(host: DockerHost, name: str) -> None:
    start(host, name, "while [ ! -e /go ]; do sleep 0.05; done; seq 1 20000; exit 6")
    followers = [
        subprocess.Popen(host.words(*words, name), stdout=subprocess.PIPE, text=True)
        for words in (("attach", "--no-stdin"), ("logs", "-f"))
    ]
    time.sleep(2)  # an attach tells nobody that it has begun
    host.docker("exec", name, "touch", "/go")
    wanted = "".join(f"{number}\n" for number in range(1, 20001))
    ended = [(each.communicate(timeout=30)[0], each.returncode) for each in followers]
    assert ended == [(wanted, 6), (wanted, 0)]


def test_a_removal_at_the_end_leaves_nothing(host: DockerHost, name: str) -> None:
    start(host, name, "sleep 0.2", "--rm")
    until(lambda: not host.docker("ps", "-aq", "--filter", f"name={name}"), "it is removed")


def test_restart_policies_are_kept(host: DockerHost, name: str) -> None:
    fails = f"{name}-fails"
    start(host, fails, "echo run; exit 4", "--restart", "on-failure:2")
    try:
        start(host, name, "sleep 1000", "--restart", "always")
        first = int(host.state(name, "Pid"))
        os.kill(first, 9)
        until(lambda: host.state(name, "Pid") not in ("0", str(first)), "it runs again")
        assert host.docker("inspect", "-f", "{{.RestartCount}}", name) == "1\n"
        until(lambda: host.state(fails, "Status") == "exited", "no further restart")
        assert host.state(fails, "ExitCode") == "4"
        assert host.docker("logs", fails) == "run\n" * 3
    finally:
        host.raw("rm", "-f", fails)


def test_want_of_memory_is_told(host: DockerHost, name: str) -> None:
    start(host, name, FILL_MEMORY, *LITTLE_MEMORY)
    assert host.docker("wait", name) == "137\n"
    assert host.state(name, "OOMKilled") == "true"


def test_health_is_checked(host: DockerHost, name: str) -> None:
    check = ("--health-cmd", "test -e /tmp/well", "--health-interval", "200ms")
    start(host, name, "sleep 1000", *check, "--health-retries", "1")
    until(lambda: host.state(name, "Health.Status") == "unhealthy", "it is unhealthy")
    host.docker("exec", name, "touch", "/tmp/well")
    until(lambda: host.state(name, "Health.Status") == "healthy", "it is healthy")


def test_an_image_is_built_and_committed(host: DockerHost, name: str) -> None:
    text = f"FROM {IMAGE}\nRUN echo built >/built\nCMD cat /built\n"
    host.docker("build", "-q", "-t", "built", "--network", "none", "-", stdin=text)
    assert once(host, "built") == "built\n"
    host.docker("run", "--name", name, *NO_NETWORK, IMAGE, "touch", "/new")
    host.docker("commit", name, "committed")
    assert once(host, "committed", "ls", "/new") == "/new\n"


# ---------------------------------------------------------------- deaths


@pytest.fixture(scope="module")
def counting(host: DockerHost) -> Iterator[str]:
    """A container that does not notice what happens around it: see `undisturbed`."""
    start(host, "counting", COUNT)
    yield "counting"
    host.raw("rm", "-f", "counting")


def undisturbed(host: DockerHost, pid: str) -> None:
    """It is still the same process, can be entered, and all that it said is in the log."""
    assert host.state("counting", "Pid") == pid
    assert host.docker("exec", "counting", "echo", "in") == "in\n"
    said = host.docker("logs", "counting").splitlines()
    assert said == [str(number) for number in range(1, len(said) + 1)]
    before = len(said)
    until(lambda: len(host.docker("logs", "counting").splitlines()) > before, "it says more")


def dead(pid: str) -> bool:
    """Whether a process has ended, whoever knows of it."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_holdfastd_is_killed_and_docker_misses_nothing(
    host: DockerHost, counting: str, name: str
) -> None:
    pid = host.state(counting, "Pid")
    start(
        host, name, f"while [ ! -e /go ]; do sleep 0.05; done; exec {FILL_MEMORY}", *LITTLE_MEMORY
    )
    ends = host.state(name, "Pid")
    words = host.words("exec", name, "sh", "-c", "sleep 1; touch /go; sleep 1000")
    with subprocess.Popen(words) as inside:
        try:
            # An exec whose start nobody has answered yet is refused by Docker.
            host.exec_runs(name)
            host.kill("holdfastd")
            until(lambda: dead(ends), "it has ended")
            host.start("holdfastd")
            assert host.docker("wait", name) == "137\n"
            assert host.state(name, "OOMKilled") == "true"
            assert inside.wait(30) == 137
        finally:
            inside.kill()
    undisturbed(host, pid)


def test_dockerd_is_killed_and_finds_everything_again(
    host: DockerHost, counting: str, name: str
) -> None:
    pid = host.state(counting, "Pid")
    start(host, name, "sleep 1; seq 1 10000; exit 7")
    ends = host.state(name, "Pid")
    host.kill("dockerd")
    until(lambda: dead(ends), "it has ended")
    host.start("dockerd")
    assert host.docker("wait", name) == "7\n"
    # dockerd may answer before it has copied what lay in the FIFO.
    expected = "".join(f"{number}\n" for number in range(1, 10001))
    until(lambda: host.docker("logs", name) == expected, "its log is whole")
    undisturbed(host, pid)


def test_both_are_killed(host: DockerHost, counting: str, name: str) -> None:
    pid = host.state(counting, "Pid")
    start(host, name, "sleep 1; echo last; exit 9")
    ends = host.state(name, "Pid")
    host.kill("holdfastd")
    host.kill("dockerd")
    until(lambda: dead(ends), "it has ended")
    host.start("holdfastd")
    host.start("dockerd")
    assert host.docker("wait", name) == "9\n"
    until(lambda: host.docker("logs", name) == "last\n", "its log is whole")
    undisturbed(host, pid)


def test_nothing_is_left(host: DockerHost) -> None:
    host.raw("rm", "-f", "web", "counting")
    assert host.docker("ps", "-aq") == ""
    assert host.tasks() == []
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    left = [line.split()[4] for line in mounts if f" {host.base}/" in line]
    containers = ("overlay2", "containers", "state/moby", "state/tasks")
    assert [path for path in left if any(word in path for word in containers)] == []
    assert list(Path("/sys/fs/cgroup").glob(f"*{host.cgroup_parent}/*/")) == []
