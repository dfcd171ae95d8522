"""Tasks."""

import json
import re
import subprocess
import time

import pytest
from driver import BUSYBOX, Ctr, Pair, start, status, until, wait_for
from terminal import on_a_terminal

pytestmark = [pytest.mark.root, pytest.mark.slow]


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


def test_what_tasks_prints_is_what_containerd_prints(pair: Pair) -> None:
    for ctr in pair:
        ctr.run("images", "import", str(ctr.daemon.base / "busybox.tar"))
    try:
        pair.same("containers", "create", BUSYBOX, "one", "sleep", "1000")
        assert pair.same("tasks", "ls", "-q") == ""
        pair.same("tasks", "start", "-d", "--null-io", "--pid-file", "@/one.pid", "one")
        assert pair.same("tasks", "ls", "-q") == "one\n"
        for ctr in pair:
            pid = (ctr.daemon.base / "one.pid").read_text()
            assert ["one", pid, "RUNNING"] in ctr.table("tasks", "ls")
        flags = ("--exec-id", "e1", "--cwd", "/tmp", "--user", "1:2")
        assert "/tmp\nuid=1 gid=2" in pair.same(
            "tasks", "exec", *flags, "one", "sh", "-c", "pwd; id"
        )
        flags = ("--exec-id", "e2", "--detach", "--log-uri", "file://@/e2.log")
        for ctr in pair:
            place = str(ctr.daemon.base)
            ctr.run("tasks", "exec", *(f.replace("@", place) for f in flags), "one", "echo", "told")
            log = ctr.daemon.base / "e2.log"
            until(lambda log=log: log.exists() and log.read_text() == "told\n")
        pair.same(
            "tasks", "exec", "-d", "--exec-id", "e3", "--fifo-dir", "@/f", "one", "sleep", "9"
        )
        for ctr in pair:
            assert "ExecID:e3" in ctr.run("tasks", "ps", "one")
        pair.same("tasks", "kill", "--exec-id", "e3", "-s", "KILL", "one")
        for ctr in pair:
            until(lambda ctr=ctr: "ExecID:e3" not in ctr.run("tasks", "ps", "one"))
        pair.same("tasks", "rm", "--exec-id", "e3", "one", code=137)
        metrics = [json.loads(c.run("tasks", "metrics", "--format", "json", "one")) for c in pair]
        assert set(metrics[0]) == set(metrics[1])
        assert metrics[0]["pids"] == metrics[1]["pids"]
        pair.same("tasks", "start", "one", code=1)
        pair.same("tasks", "rm", "one", code=1)
        pair.same("tasks", "kill", "-s", "NONE", "one", code=1)
        pair.same("tasks", "kill", "--exec-id", "never", "one", code=1)
    finally:
        for ctr in pair:
            ctr.raw("tasks", "rm", "--force", "one")
    assert pair.same("tasks", "ls", "-q") == ""
    for verb in ("attach", "kill", "metrics", "pause", "ps", "resume", "rm", "start"):
        pair.same("tasks", verb, "never", code=1)
    pair.same("tasks", "exec", "--exec-id", "x", "never", "true", code=1)
    pair.same("containers", "rm", "one")


def test_a_task_is_not_checkpointed_on_a_host_without_criu(ctr: Ctr, name: str) -> None:
    start(ctr, name)
    assert re.search("CRIU|criu", ctr.refused("tasks", "checkpoint", name))
    assert status(ctr, name) == "RUNNING"
