"""Worker processes: killed, hung, orphaned; none is left over and nobody waits for ever."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import (
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from holdfast.actors.exits import StartFailed
from holdfast.actors.reference import Ref
from holdfast.actors.system import System
from holdfast.storage.jobframes import decode_length, encode_frame
from holdfast.storage.mounts import Mount
from holdfast.storage.worker import Watch, answer, serve
from holdfast.storage.workers import Worker, WorkerFault, Workers

sys.path.insert(0, str(Path(__file__).parent))
from check_snapshotter import mounts_below
from layers import file, write


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    async with System.open():
        workers = Workers(2)
        yield workers
        await workers.close()


def hang(tmp: Path) -> dict[str, object]:
    """A job that waits until someone writes to a FIFO, which nobody does."""
    fifo = tmp / "fifo"
    if not fifo.exists():
        os.mkfifo(fifo)
    bind = Mount(type="bind", source=str(tmp), options=("rbind", "rw")).to_record()
    return {
        "do": "apply",
        "blob": str(fifo),
        "media_type": "",
        "mounts": [bind],
        "sync": False,
        "stream_bytes_max": 1,
        "entries_max": 1,
    }


def busy() -> list[Worker]:
    """The worker actors that live now."""
    actors = [cell.actor for cell in System.current().cells]
    return [actor for actor in actors if isinstance(actor, Worker)]


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def until_gone(pid: int) -> None:
    with trio.fail_after(5):
        while not is_gone(pid):
            await trio.sleep(0.01)


async def pid_of_busy() -> int:
    with trio.fail_after(10):
        while not (found := busy()) or not found[0].pid:
            await trio.sleep(0.01)
    await trio.sleep(0.1)
    return found[0].pid


async def test_a_worker_applies_a_layer(workers: Workers, tmp_path: Path) -> None:
    blob = write(tmp_path / "blob", file(b"hello", b"x"))
    root = tmp_path / "root"
    os.mkdir(root)
    mount = Mount(type="bind", source=str(root), options=("rbind", "rw"))
    applied = await workers.apply(blob, "", [mount])
    assert (applied.entries, os.listdir(root)) == (1, ["hello"])
    with pytest.raises(InvalidArgument, match="leaves the root"):
        await workers.apply(write(blob, file(b"../x")), "", [mount])
    # A refusal is an answer: the same process goes on.
    assert len(busy()) == 1


async def test_a_job_that_hangs_is_ended_at_its_deadline(workers: Workers, tmp_path: Path) -> None:
    await workers.measure(tmp_path)
    [worker] = busy()
    with pytest.raises(DeadlineExceeded, match=r"apply took longer than 0\.2 s"):
        await workers.run(hang(tmp_path), within_s=0.2)
    await until_gone(worker.pid)
    assert (await workers.measure(tmp_path)).inodes == 2
    assert busy()[0].pid != worker.pid


async def test_a_worker_that_dies_takes_its_job_with_it(workers: Workers, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(Unavailable, match="died while doing apply"):
                await workers.run(hang(tmp_path), within_s=30)

        nursery.start_soon(run)
        os.kill(await pid_of_busy(), signal.SIGKILL)
    assert (await workers.measure(tmp_path)).inodes == 2


async def test_a_worker_that_is_reaped_signals_nobody(workers: Workers) -> None:
    ref = await Worker.spawn()
    [actor] = busy()
    os.kill(actor.pid, signal.SIGKILL)
    await ref.wait_exit()
    await until_gone(actor.pid)
    other = subprocess.Popen(["sleep", "100"])
    # One of these has the number that the worker's own had.
    numbers = [os.pidfd_open(other.pid) for _ in range(16)]
    try:
        actor._kill()  # as who hears of the end late does
        await trio.sleep(0.05)
        assert other.poll() is None
    finally:
        for number in numbers:
            os.close(number)
        other.kill()
        other.wait()


async def test_an_idle_worker_that_died_is_replaced(workers: Workers, tmp_path: Path) -> None:
    await workers.measure(tmp_path)
    [worker] = busy()
    os.kill(worker.pid, signal.SIGKILL)
    await worker.ref.wait_exit()
    assert is_gone(worker.pid)
    assert (await workers.measure(tmp_path)).inodes == 1


async def test_a_cancelled_caller_leaves_no_process_behind(
    workers: Workers, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: workers.run(hang(tmp_path), within_s=30))
        pid = await pid_of_busy()
        nursery.cancel_scope.cancel()
    await until_gone(pid)
    assert (await workers.measure(tmp_path)).inodes == 2


async def test_no_more_processes_than_allowed(workers: Workers, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(workers.measure, tmp_path)
    assert 1 <= len(busy()) <= 2


async def test_closing_ends_the_processes(tmp_path: Path) -> None:
    async with System.open():
        workers = Workers(1)
        await workers.measure(tmp_path)
        pid = busy()[0].pid
    await until_gone(pid)


async def test_a_worker_that_does_not_start_is_a_refusal_to_none_but_its_caller(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartFailed):
        await workers.measure(tmp_path)
    monkeypatch.undo()
    assert (await workers.measure(tmp_path)).inodes == 1


async def test_a_fault_in_a_job_is_told_as_such(workers: Workers) -> None:
    with pytest.raises(WorkerFault, match="KeyError"):
        await workers.run({"do": "no such job"}, within_s=5)


async def test_workers_may_come_from_a_supervisor(tmp_path: Path) -> None:
    spawned: list[Ref[Worker]] = []

    async def spawn() -> Ref[Worker]:
        spawned.append(await Worker.spawn(name="worker-1"))
        return spawned[-1]

    async with System.open():
        workers = Workers(1, spawn=spawn)
        await workers.measure(tmp_path)
        assert len(spawned) == 1
        await workers.close()


@pytest.mark.root
async def test_mounts_are_made_and_taken_off(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "at").mkdir()
    mount = Mount(type="bind", source=str(tmp_path / "a"), options=("rbind", "ro"))
    try:
        await workers.mount([mount], tmp_path / "at")
        assert len(mounts_below(tmp_path)) == 1
    finally:
        await workers.unmount(tmp_path / "at")
    assert mounts_below(tmp_path) == []
    with pytest.raises(InvalidArgument):
        await workers.mount([mount], tmp_path / "none")


async def test_trees_are_copied_and_removed(workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("c")
    (tmp_path / "copy").mkdir()
    await workers.copy_tree(tmp_path / "a", tmp_path / "copy")
    await workers.remove_tree(tmp_path / "a")
    await workers.remove_tree(tmp_path / "a")
    await workers.remove_tree(tmp_path / "none/none")
    await workers.sync(tmp_path)
    assert os.listdir(tmp_path / "copy/b") == ["c"]


async def test_a_layer_that_wants_more_memory_than_there_is_is_refused(
    workers: Workers, tmp_path: Path
) -> None:
    # A frame of zstd with a window of 128 MiB, for a worker that may have little more than it has.
    (tmp_path / "blob").write_bytes(bytes.fromhex("28b52ffd00880300100000"))
    (tmp_path / "root").mkdir()
    mount = Mount(type="bind", source=str(tmp_path / "root"), options=("rbind", "rw"))
    await workers.measure(tmp_path)
    [worker] = busy()
    resource.prlimit(worker.pid, resource.RLIMIT_DATA, (100 << 20, 100 << 20))
    with pytest.raises(ResourceExhausted, match="bytes of memory"):
        await workers.apply(tmp_path / "blob", "", [mount])
    # It is as good as before.
    blob = write(tmp_path / "blob", file(b"hello", b"x"))
    assert (await workers.apply(blob, "", [mount])).entries == 1
    assert busy() == [worker]


# -- the program itself


def start_program() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.storage.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    assert ours.recv(1000)
    return process, ours


def test_the_program_ends_with_its_daemon_even_in_a_job(tmp_path: Path) -> None:
    process, ours = start_program()
    ours.sendall(encode_frame(hang(tmp_path)))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    ours.close()
    assert process.wait(5) == 1


def test_the_program_ends_in_order_when_idle() -> None:
    process, ours = start_program()
    ours.close()
    assert process.wait(5) == 0


def test_frames_too_long_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        decode_length(b"\xff\xff\xff\xff")


def test_system_errors_are_answers(tmp_path: Path) -> None:
    assert answer({"do": "measure", "path": str(tmp_path / "none")})["refused"][0] == (
        "InvalidArgument"
    )
    assert "fault" in answer({"do": "measure"})


def test_a_served_stream_ends_quietly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Watch, "_run", lambda self: None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode_frame({"do": "measure", "path": str(tmp_path)}))
        ours.shutdown(socket.SHUT_WR)
        serve(theirs)
        assert ours.recv(4096)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(encode_frame({"do": "sync", "path": str(tmp_path)}) + b"\0\0\0\x09half")
        ours.close()
        with pytest.raises(BrokenPipeError):
            serve(theirs)
