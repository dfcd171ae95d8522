"""Stdio and terminals, as containerd's clients hand them, with real containers."""

import json
import os
import pty as unix_pty
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from holdfast.actors.errors import InvalidArgument, NotFound, Unimplemented
from holdfast.runtime import cgroup
from holdfast.runtime.pins import Pins
from holdfast.runtime.poller import Poller
from holdfast.runtime.pty import Terminal
from holdfast.runtime.ptykeeper import PtyKeeper
from holdfast.runtime.shimclient import RuntimeOptions
from holdfast.runtime.stdio import Output, Stdio, Streams, output_path

root = pytest.mark.root


async def read_to_end(path: str) -> bytes:
    """What a client reads from a FIFO until EOF."""

    def read() -> bytes:
        with open(path, "rb") as fifo:
            return fifo.read()

    with trio.fail_after(10):
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)


async def until(condition: Callable[[], bool], within_s: float = 5) -> None:
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.01)


async def start(task: Any, stdio: Stdio, **options: Any) -> int:
    await task.create(stdio, options=RuntimeOptions(**options))
    return await task.client.start()


@root
async def test_output_comes_through_fifos_and_ends(house) -> None:
    task = await house.task(["/bin/sh", "-c", "echo out; echo err >&2"])
    out, err = task.fifo("out"), task.fifo("err")
    heard: dict[str, bytes] = {}

    async def hear(path: str) -> None:
        heard[path] = await read_to_end(path)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear, out)
        nursery.start_soon(hear, err)
        await start(task, Stdio(stdout=out, stderr=err))
    assert heard == {out: b"out\n", err: b"err\n"}


@root
async def test_a_reader_that_comes_after_the_exit_gets_all(house) -> None:
    task = await house.task(["/bin/echo", "kept"])
    out = task.fifo("out")
    await start(task, Stdio(stdout=out))
    await task.exited()
    assert await read_to_end(out) == b"kept\n"


@root
async def test_a_client_that_goes_away_and_comes_back_misses_nothing(house) -> None:
    script = "echo one; read line; echo two; read line; echo three"
    task = await house.task(["/bin/sh", "-c", script])
    stdin, out = task.fifo("in"), task.fifo("out")
    await start(task, Stdio(stdin=stdin, stdout=out))
    reader = os.open(out, os.O_RDONLY)
    assert os.read(reader, 100) == b"one\n"
    os.close(reader)
    for _ in range(2):  # each write by a client of its own: no EOF in between
        writer = os.open(stdin, os.O_WRONLY)
        os.write(writer, b"\n")
        os.close(writer)
        await trio.sleep(0.05)
    await task.exited()
    assert await read_to_end(out) == b"two\nthree\n"


@root
async def test_stdin_ends_when_both_ends_are_closed(house) -> None:
    task = await house.task(["/bin/cat"])
    stdin, out = task.fifo("in"), task.fifo("out")
    await start(task, Stdio(stdin=stdin, stdout=out))
    writer = os.open(stdin, os.O_WRONLY)
    await task.client.close_io()
    os.write(writer, b"all of it")
    os.close(writer)
    assert (await task.exited()).status == 0
    assert await read_to_end(out) == b"all of it"


@root
async def test_many_bytes_come_whole(house) -> None:
    task = await house.task(["/bin/sh", "-c", "dd if=/dev/zero bs=65536 count=512 2>/dev/null"])
    out = task.fifo("out")
    await start(task, Stdio(stdout=out))
    assert len(await read_to_end(out)) == 32 << 20


@root
async def test_a_log_file_is_appended_to(house) -> None:
    task = await house.task(["/bin/sh", "-c", "echo out; echo err >&2"])
    log = house.state / "deep" / "a log"
    uri = f"file://{house.state}/deep/a%20log?mode=x"
    log.parent.mkdir()
    log.write_text("before\n")
    await start(task, Stdio(stdout=uri, stderr=uri))
    await task.exited()
    assert log.read_text() == "before\nout\nerr\n"


@root
async def test_a_missing_fifo_is_refused_and_the_create_can_be_tried_again(house) -> None:
    task = await house.task(["/bin/true"])
    with pytest.raises(NotFound, match="/no/fifo"):
        await task.create(Stdio(stdin=task.fifo("in"), stdout="/no/fifo"))
    with pytest.raises(Unimplemented):
        await task.create(Stdio(stdout="https://host/p"))
    with pytest.raises(InvalidArgument, match="/no/logger"):
        await task.create(Stdio(stdout="binary:///no/logger"))
    await start(task, Stdio())
    assert (await task.exited()).status == 0


@root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
async def test_a_terminal_carries_both_ways_and_has_a_size(house, runtime) -> None:
    task = await house.task(
        ["/bin/sh", "-c", "read go; stty size; read line; echo got $line; exit 3"], terminal=True
    )
    stdin, out = task.fifo("in"), task.fifo("out")
    await start(task, Stdio(stdin=stdin, stdout=out, terminal=True), binary_name=runtime)
    await task.client.resize(100, 40)
    writer = os.open(stdin, os.O_WRONLY)
    os.write(writer, b"\nhello\n")
    heard = await read_to_end(out)
    os.close(writer)
    assert (await task.exited()).status == 3
    lines = heard.replace(b"\r", b"").split(b"\n")
    assert b"40 100" in lines
    assert b"got hello" in lines


@root
async def test_a_terminal_s_output_waits_for_its_reader_and_is_whole(house) -> None:
    task = await house.task(["/bin/sh", "-c", "seq 1 60000"], terminal=True)
    out = task.fifo("out")
    await start(task, Stdio(stdout=out, terminal=True))
    await trio.sleep(0.2)  # the FIFO is full by now
    assert not task.events
    assert (await task.client.state(timeout_s=1)).processes[""].status == "running"
    heard = (await read_to_end(out)).split()
    assert heard == [str(number).encode() for number in range(1, 60001)]
    await task.exited()


@root
async def test_a_terminal_s_last_words_outlive_it(house) -> None:
    task = await house.task(["/bin/sh", "-c", "seq 1 2000; exit 2"], terminal=True)
    out = task.fifo("out")
    await start(task, Stdio(stdout=out, terminal=True))
    assert (await task.exited()).status == 2
    assert (await read_to_end(out)).split()[-1] == b"2000"


@root
@pytest.mark.parametrize("runtime", ["crun", "runc"])
async def test_an_exec_has_a_terminal_of_its_own(house, settings, runtime) -> None:
    task = await house.task(["/bin/sleep", "1000"])
    await task.create(options=RuntimeOptions(binary_name=runtime))
    await task.client.start()
    log = house.state / "log"
    spec = {**settings, "args": ["/bin/sh", "-c", "tty; kill -TERM $$; sleep 5"], "terminal": True}
    stdio = Stdio(stdout=f"file://{log}", terminal=True)
    await task.client.exec("e", json.dumps(spec).encode(), stdio)
    await task.client.start("e")
    assert (await task.exited("e")).status == 128 + signal.SIGTERM
    assert log.read_bytes() == b"/dev/pts/0\r\n"


@root
async def test_a_process_left_behind_does_not_hold_back_the_exit(house, settings) -> None:
    task = await house.task(["/bin/sleep", "1000"])
    await start(task, Stdio())
    out = task.fifo("out")
    script = "trap '' HUP; (sleep 1; echo late) & echo early; sleep 0.1"
    spec = {**settings, "args": ["/bin/sh", "-c", script], "terminal": True}
    await task.client.exec("e", json.dumps(spec).encode(), Stdio(stdout=out, terminal=True))
    await task.client.start("e")
    assert (await task.exited("e")).status == 0
    assert b"early" in await read_to_end(out)


def test_an_output_is_a_path_or_a_uri_of_one() -> None:
    assert output_path("/a b") == "/a b"
    assert output_path("file:///a%20b?x=y") == "/a b"
    assert output_path("fifo:///a") == "/a"
    with pytest.raises(InvalidArgument):
        output_path("file://host/a")
    with pytest.raises(Unimplemented):
        output_path("binary:///a")


def test_a_plain_file_is_taken_where_a_fifo_is_usual(tmp_path: Path) -> None:
    source, log = tmp_path / "source", tmp_path / "log"
    source.write_text("in")
    log.write_text("old ")
    pins = Pins(None, str(tmp_path))
    streams = Streams(Stdio(stdin=str(source), stdout=str(log)), pins, "init")
    stdin, stdout, _ = streams.descriptors()
    assert os.read(stdin, 10) == b"in"
    os.write(stdout, b"new")
    streams.close()
    assert log.read_text() == "old new"
    with pytest.raises(InvalidArgument):
        Streams(Stdio(stdout=f"file://{tmp_path}"), pins, "init")


def test_a_reader_is_seen(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    output = Output(path, Pins(None, str(tmp_path)), "init.1")
    assert output.has_reader()  # ourselves
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poller = Poller(lambda pid, status: None)

    async def finish() -> None:
        await output.finish(poller)
        poller.stop()

    poller.spawn(finish())
    poller.run()
    poller.close()
    assert os.read(reader, 10) == b""
    os.close(reader)


def test_a_terminal_without_a_client_drops_its_output(tmp_path: Path) -> None:
    poller = Poller(lambda pid, status: None)
    master, slave = unix_pty.openpty()
    keeper = PtyKeeper(str(tmp_path), "init")
    keeper.renew(master)
    os.close(master)
    terminal = Terminal(
        poller, Stdio(terminal=True), Pins(None, str(tmp_path)), keeper, slot="init"
    )
    os.write(slave, b"nobody hears")
    os.close(slave)

    async def end() -> None:
        await terminal.attach()
        terminal.resize(80, 25)
        terminal.close_input()
        terminal.finish()
        await terminal.drained
        poller.stop()

    poller.spawn(end())
    poller.run()
    terminal.close()
    terminal.resize(80, 25)
    poller.close()
    assert not list(tmp_path.iterdir())


def test_a_keeper_that_gets_no_terminal_has_none(tmp_path: Path) -> None:
    keeper = PtyKeeper(str(tmp_path), "init")
    path = keeper.begin()
    assert Path(path).is_socket()
    assert keeper.take() is None
    keeper.end()
    assert os.waitpid(keeper.pid, 0)[1] == signal.SIGKILL
    assert not list(tmp_path.iterdir())


def test_a_terminal_lives_as_long_as_one_of_its_keepers(tmp_path: Path) -> None:
    master, slave = unix_pty.openpty()
    first = PtyKeeper(str(tmp_path), "init")
    first.renew(master)
    os.close(master)
    # A later shim knows the keeper by what is written down alone.
    later = PtyKeeper(str(tmp_path), "init")
    taken = later.take()
    assert taken is not None
    os.write(slave, b"still here")
    assert os.read(taken, 100) == b"still here"
    later.renew(taken)
    assert os.waitpid(first.pid, 0)[1] == signal.SIGKILL
    os.close(taken)
    os.write(slave, b"and here")
    again = later.take()
    assert again is not None
    assert os.read(again, 100) == b"and here"
    os.close(again)
    later.end()
    assert os.waitpid(later.pid, 0)[1] == signal.SIGKILL
    with pytest.raises(OSError, match="Input/output error"):
        os.write(slave, b"hung up")
    os.close(slave)


@root
async def test_a_user_who_is_not_root_may_open_the_streams_anew(house, settings) -> None:
    task = await house.task(["/bin/sleep", "1000"])
    await start(task, Stdio())
    out = task.fifo("out")
    os.chmod(out, 0o600)
    house.root.chmod(0o755)
    user = {**settings["user"], "uid": 1000, "gid": 1000}
    args = ["/bin/sh", "-c", "echo again > /proc/self/fd/1"]
    spec = json.dumps({**settings, "args": args, "user": user}).encode()
    await task.client.exec("e", spec, Stdio(stdout=out))
    await task.client.start("e")
    assert (await task.exited("e")).status == 0
    assert await read_to_end(out) == b"again\n"


@root
async def test_a_shim_is_in_the_cgroup_that_its_client_has_for_it(house) -> None:
    name = f"holdfast-shim-{uuid.uuid4().hex[:8]}"
    mounted = cgroup.hierarchies(Path("/proc/self/mountinfo").read_text())
    point, _ = next(mounted[key] for key in ("pids", "cpuacct", "") if key in mounted)
    made = Path(point, name)
    made.mkdir()

    def inside() -> list[int]:
        return [int(pid) for pid in (made / "cgroup.procs").read_text().split()]

    try:
        task = await house.task(["/bin/sleep", "1000"])
        with pytest.raises(NotFound, match="no-such"):
            await task.create(options=RuntimeOptions(shim_cgroup="/no-such"))
        pid = await task.create(options=RuntimeOptions(shim_cgroup=f"/{name}"))
        assert inside() == [task.shim_pid]
        os.kill(task.shim_pid, signal.SIGKILL)
        await until(lambda: not inside())
        await task.connect(adopt=True)
        assert inside() == [task.shim_pid] != [pid]
        await task.client.kill(9)
        await task.exited()
        await task.client.delete()
        assert inside() == []
    finally:
        made.rmdir()
