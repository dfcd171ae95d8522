"""The shim, with real containers: the life of a task and its execs, each verb, no residue."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from holdfast.actors.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
    Unknown,
)
from holdfast.runtime import cgroup, metrics, process, procfs
from holdfast.runtime.shimclient import RuntimeOptions
from holdfast.runtime.stdio import Stdio

pytestmark = pytest.mark.root

SLEEP = ["/bin/sleep", "1000"]
RUNTIMES = ["crun", "runc"]


def spec(settings: Any, *args: str, **more: Any) -> bytes:
    return json.dumps({**settings, "args": list(args), **more}).encode()


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_container_runs_to_its_exit_and_leaves_nothing(house, residue, runtime) -> None:
    task = await house.task(["/bin/sh", "-c", "exit 7"], cgroup_mount=True)
    pid = await task.create(options=RuntimeOptions(binary_name=runtime))
    assert (await task.client.process_state()).status == "created"
    assert procfs.identity(pid) == procfs.Identity(
        *map(int, (task.bundle / "init.pid").read_text().split())
    )
    assert await task.client.start() == pid
    exited = await task.exited()
    assert (exited.pid, exited.status) == (pid, 7)
    record = process.read_exit(str(task.bundle), "")
    assert record == process.ExitRecord(pid=pid, status=7, exited_at_ns=exited.exited_at_ns)
    assert await task.client.delete() == exited
    assert residue(task) == []
    # A delete whose answer was lost is answered again.
    assert await task.client.delete() == exited
    await task.client.shutdown()
    await task.client.closed.wait()
    with trio.fail_after(5):
        while (task.bundle / "shim.sock").exists():
            await trio.sleep(0.01)


async def test_the_host_sees_neither_mounts_nor_new_directories(house) -> None:
    def seen() -> list[str]:
        unified = [path for path, _, _ in os.walk("/sys/fs/cgroup/unified")]
        return [*unified, *Path("/proc/self/mountinfo").read_text().splitlines()]

    before = seen()
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    during = seen()
    await task.client.kill(9)
    await task.exited()
    await task.client.delete()
    ours = [line for line in during if line not in before and task.id in line]
    assert ours == []
    assert [line for line in seen() if task.id in line] == []


async def test_a_second_delete_is_refused_while_the_first_is_at_work(house) -> None:
    task = await house.task(SLEEP)
    await task.create()
    outcomes: list[str] = []

    async def delete() -> None:
        try:
            await task.client.delete()
            outcomes.append("deleted")
        except Unavailable as error:
            outcomes.append(type(error).__name__)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        nursery.start_soon(delete)
    assert sorted(outcomes) in (["Unavailable", "deleted"], ["deleted", "deleted"])


async def test_the_shim_leaves_no_descriptor_behind_after_delete(house, residue, settings) -> None:
    task = await house.task(SLEEP)
    descriptors = Path(f"/proc/{task.shim_pid}/fd")
    before = set(os.listdir(descriptors))
    stdin, stdout = task.fifo("in"), task.fifo("out")
    await task.create(Stdio(stdin=stdin, stdout=stdout))
    await task.client.start()
    await task.client.exec("e", spec(settings, "true", terminal=True), Stdio(terminal=True))
    await task.client.start("e")
    await task.exited("e")
    await task.client.kill(9)
    await task.exited()
    await task.client.delete()
    left = [os.readlink(descriptors / name) for name in set(os.listdir(descriptors)) - before]
    assert left == []
    assert sorted(residue(task)) == ["in", "out"]


@pytest.mark.parametrize(
    ("script", "status"), [("kill -9 $$", 137), ("kill -TERM $$; sleep 9", 143), ("exit 255", 255)]
)
async def test_a_signal_counts_as_128_and_its_number(house, settings, script, status) -> None:
    # By an exec, for the first process of a pid namespace is deaf to itself.
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    await task.client.exec("e", spec(settings, "/bin/sh", "-c", script), Stdio())
    await task.client.start("e")
    assert (await task.exited("e")).status == status


async def test_the_container_has_the_signals_of_an_ordinary_process(house) -> None:
    task = await house.task(["/bin/grep", "SigIgn", "/proc/self/status"])
    out = task.bundle / "out.log"
    await task.create(Stdio(stdout=f"file://{out}"))
    await task.client.start()
    await task.exited()
    ignored = int(out.read_text().split()[1], 16)
    assert ignored & ~(3 << 31) == 0  # 32 and 33 are the C library's own


async def test_kill_reaches_the_first_process(house) -> None:
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    await task.client.kill(signal.SIGKILL)
    assert (await task.exited()).status == 137
    with pytest.raises(NotFound, match="process already finished"):
        await task.client.kill(signal.SIGKILL)


async def test_a_created_container_can_be_deleted_without_a_start(house, residue) -> None:
    task = await house.task(SLEEP)
    pid = await task.create()
    deleted = await task.client.delete()
    assert (deleted.pid, deleted.status) == (pid, 137)
    assert residue(task) == []


async def test_an_exec_runs_beside_the_first_process(house, settings) -> None:
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    await task.client.exec("e1", spec(settings, "/bin/sh", "-c", "exit 3"), Stdio())
    assert (await task.client.process_state("e1")).status == "created"
    pid = await task.client.start("e1")
    exited = await task.exited("e1")
    assert (exited.pid, exited.status) == (pid, 3)
    assert (await task.client.delete("e1")).status == 3
    with pytest.raises(NotFound):
        await task.client.process_state("e1")
    # The id is free again.
    await task.client.exec("e1", spec(settings, "/bin/true"), Stdio())
    assert (await task.client.delete("e1")).pid == 0


async def test_execs_that_end_at_once_are_all_told_after_their_start(house, settings) -> None:
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    order: list[str] = []

    async def one(number: int) -> None:
        exec_id = f"e{number}"
        await task.client.exec(exec_id, spec(settings, "/bin/sh", "-c", f"exit {number}"), Stdio())
        await task.client.start(exec_id)
        order.append(exec_id)
        assert (await task.exited(exec_id)).status == number

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    assert len(task.events) == len(order) == 8


async def test_a_failed_exec_says_why_and_can_be_deleted(house, settings) -> None:
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    await task.client.exec("e", spec(settings, "/no/such/program"), Stdio())
    with pytest.raises(Unknown, match=r"OCI runtime exec failed: .*: unknown$"):
        await task.client.start("e")
    await task.client.delete("e")


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_failed_create_says_why_and_leaves_nothing(house, residue, runtime) -> None:
    task = await house.task(["/no/such/program"])
    options = RuntimeOptions(binary_name=runtime)
    try:
        await task.create(options=options)
        await task.client.start()  # runc looks for the program only here
    except Unknown as error:
        assert "OCI runtime" in str(error)  # noqa: PT017 - which call it is depends
        assert "no/such/program" in str(error)  # noqa: PT017
    else:
        pytest.fail("it was created")
    if "" in (await task.client.state()).processes:
        await task.client.kill(9)
        await task.exited()
        await task.client.delete()
    assert residue(task) == []
    (task.bundle / "config.json").write_text("[1")
    with pytest.raises(InvalidArgument):
        await task.create()
    (task.bundle / "config.json").unlink()
    with pytest.raises(InvalidArgument):
        await task.create()
    with pytest.raises(NotFound, match="no-such-runtime"):
        await task.create(options=RuntimeOptions(binary_name="no-such-runtime"))


def freezer_says(cgroups: cgroup.Directories) -> str:
    """The kernel's own word, of the freezer's state in either version of cgroups."""
    if "freezer" in cgroups:
        return Path(cgroups["freezer"], "freezer.state").read_text().strip()
    events = Path(cgroups[cgroup.UNIFIED_KEY], "cgroup.events").read_text()
    return next(line for line in events.splitlines() if line.startswith("frozen"))


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_a_paused_container_stands_still(house, settings, runtime) -> None:
    task = await house.task(SLEEP)
    pid = await task.create(options=RuntimeOptions(binary_name=runtime))
    with pytest.raises(FailedPrecondition):
        await task.client.pause()
    await task.client.start()
    await task.client.pause()
    state = await task.client.state()
    assert state.paused
    assert freezer_says(state.cgroups) in ("FROZEN", "frozen 1")
    with pytest.raises(FailedPrecondition, match="paused"):
        await task.client.exec("e", spec(settings, "/bin/true"), Stdio())
    await task.client.resume()
    assert freezer_says(state.cgroups) in ("THAWED", "frozen 0")
    with pytest.raises(FailedPrecondition):
        await task.client.resume()
    await task.client.pause()
    await task.client.kill(9)
    assert (await task.exited()).pid == pid


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_update_changes_the_limits(house, runtime) -> None:
    task = await house.task(SLEEP, resources={"memory": {"limit": 64 << 20}})
    await task.create(options=RuntimeOptions(binary_name=runtime))
    await task.client.start()
    await task.client.update(json.dumps({"memory": {"limit": 32 << 20}}).encode())
    cgroups = (await task.client.state()).cgroups
    if "memory" in cgroups:
        limit = Path(cgroups["memory"], "memory.limit_in_bytes")
    else:
        limit = Path(cgroups[cgroup.UNIFIED_KEY], "memory.max")
    assert limit.read_text() == f"{32 << 20}\n"
    with pytest.raises(InvalidArgument):
        await task.client.update(b"{")
    version, fields = metrics.read(cgroups)
    assert version == (metrics.V1 if "memory" in cgroups else metrics.V2)
    memory = fields["memory"]
    told = memory["usage"]["limit"] if version == metrics.V1 else memory["usage_limit"]
    assert told == 32 << 20
    assert fields["pids"]["current"] == 1


async def test_pids_name_our_processes_and_list_the_others(house, settings) -> None:
    task = await house.task(["/bin/sh", "-c", "sleep 1000 & wait"])
    pid = await task.create()
    await task.client.start()
    await task.client.exec("e", spec(settings, "/bin/sleep", "1000"), Stdio())
    exec_pid = await task.client.start("e")
    pids: dict[int, str | None] = {}
    with trio.fail_after(5):
        while len(pids) < 3:
            pids = dict(await task.client.pids())
    assert pids[pid] == ""
    assert pids[exec_pid] == "e"
    assert list(pids.values()).count(None) == 1


async def test_kill_all_reaches_every_process(house, settings) -> None:
    task = await house.task(SLEEP)
    await task.create()
    await task.client.start()
    for exec_id in ("a", "b"):
        await task.client.exec(exec_id, spec(settings, "/bin/sleep", "1000"), Stdio())
        await task.client.start(exec_id)
    await task.client.kill(signal.SIGKILL, all=True)
    assert {(await task.exited(e)).status for e in ("a", "b", "")} == {137}
    assert task.events[-1].exec_id == ""  # the first process's exit is told last


async def test_processes_left_in_a_shared_pid_namespace_end_with_the_first(house, residue) -> None:
    task = await house.task(
        ["/bin/sh", "-c", "sleep 1000 & exit 4"], namespaces=["ipc", "uts", "mount", "network"]
    )
    await task.create()
    await task.client.start()
    assert (await task.exited()).status == 4
    await task.client.delete()
    assert residue(task) == []


async def test_want_of_memory_is_told(house) -> None:
    task = await house.task(
        ["/bin/sh", "-c", "tail /dev/zero; sleep 1000"],
        resources={"memory": {"limit": 8 << 20, "swap": 8 << 20}},
    )
    await task.create()
    await task.client.start()
    await task.out_of_memory()


async def test_a_hook_makes_the_runtime_do_what_we_else_do_ourselves(house, residue) -> None:
    stamp = house.state / "stamp"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat > /dev/null; echo hook >> {stamp}"]}
    task = await house.task(["/bin/true"], hooks={"poststart": [hook], "poststop": [hook]})
    await task.create()
    await task.client.start()
    await task.exited()
    await task.client.delete()
    assert stamp.read_text() == "hook\nhook\n"
    assert residue(task) == []
    assert (await task.client.state()).runtime_spawns == 3


async def test_a_cycle_executes_the_runtime_once(house, settings, monkeypatch) -> None:
    wrapper = house.state / "counting"
    log = house.state / "executed"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec /usr/bin/crun "$@"\n')
    wrapper.chmod(0o755)
    task = await house.task(["/bin/true"])
    await task.create(options=RuntimeOptions(binary_name=str(wrapper)))
    await task.client.start()
    await task.exited()
    await task.client.delete()
    assert (await task.client.state()).runtime_spawns == 1
    assert len(log.read_text().splitlines()) == 1


async def test_a_hanging_runtime_does_not_keep_others_from_their_answer(house, residue) -> None:
    hanging = house.state / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 1000\n")
    hanging.chmod(0o755)
    task = await house.task(SLEEP)

    async def create() -> None:
        with pytest.raises(Unknown, match="killed by signal 9"):
            await task.client.call(
                "create",
                timeout_s=10,
                task_id=task.id,
                namespace="tests",
                rootfs_mounts=[],
                options={"binary_name": str(hanging)},
                within_s=0.5,
            )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(create)
        with trio.fail_after(5):
            while not (operations := (await task.client.state(timeout_s=0.2)).operations):
                await trio.sleep(0.01)
        assert operations[0].startswith("create (")
        with pytest.raises(FailedPrecondition):
            await task.client.start()
    assert residue(task) == []


async def test_what_is_not_there_is_refused(house, settings) -> None:
    task = await house.task(SLEEP)
    for refused in (task.client.start(), task.client.kill(9), task.client.delete()):
        with pytest.raises(NotFound):
            await refused
    with pytest.raises(Unimplemented):
        await task.client.call("dance", timeout_s=5)
    with pytest.raises(InvalidArgument):
        await task.client.call("create", timeout_s=5, task_id="../up", namespace="tests")
    with pytest.raises(Unknown, match="KeyError"):  # a fault is told, and the shim lives on
        await task.client.call("kill", timeout_s=5)
    await task.create()
    with pytest.raises(AlreadyExists):
        await task.create()
    with pytest.raises(FailedPrecondition):
        await task.client.shutdown()
    with pytest.raises(FailedPrecondition):
        await task.client.resize(80, 24)
    with pytest.raises(NotFound):
        await task.client.kill(9, "nobody")
    with pytest.raises(InvalidArgument):
        await task.client.kill(999)
    await task.client.start()
    with pytest.raises(FailedPrecondition):
        await task.client.start()
    with pytest.raises(FailedPrecondition):
        await task.client.delete()
    with pytest.raises(InvalidArgument):
        await task.client.exec("e", b"no", Stdio())
    await task.client.exec("e", spec(settings, "/bin/true"), Stdio())
    with pytest.raises(AlreadyExists):
        await task.client.exec("e", spec(settings, "/bin/true"), Stdio())
    with pytest.raises(FailedPrecondition, match="not created"):
        await task.client.kill(9, "e")
    assert "KeyError" in (task.bundle / "shim.log").read_text()


async def test_a_negative_oom_score_is_clamped_where_it_may_not_be_set(house) -> None:
    task = await house.task(["/bin/cat", "/proc/self/oom_score_adj"], oom_score_adj=-900)
    out = task.bundle / "out.log"
    await task.create(Stdio(stdout=f"file://{out}"))
    await task.client.start()
    assert (await task.exited()).status == 0
    ours = Path("/proc/self/oom_score_adj").read_text()
    assert out.read_text() in ("-900\n", ours)


async def test_a_second_connection_is_told_the_state(house) -> None:
    task = await house.task(["/bin/sh", "-c", "exit 5"])
    await task.create(Stdio(stdout="file:///dev/null"))
    await task.client.aclose()
    await task.connect(spawn=False)
    await task.client.start()
    await task.exited()
    await task.client.aclose()
    await task.connect(spawn=False)
    state = await task.client.state()
    first = state.processes[""]
    assert (first.status, first.exit_status, first.lost) == ("stopped", 5, False)
    assert first.stdio == Stdio(stdout="file:///dev/null")
    assert (state.id, state.namespace, state.paused) == (task.id, "tests", False)


async def test_a_call_that_is_late_is_refused_and_the_connection_goes_on(house) -> None:
    task = await house.task(SLEEP)
    with pytest.raises(DeadlineExceeded):
        await task.client.state(timeout_s=0)
    assert (await task.client.state()).processes == {}
