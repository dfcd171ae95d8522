"""Loggers with real containers: protocol, caps, deaths, and not a line lost."""

import contextlib
import os
import signal
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from holdfast.actors.errors import FailedPrecondition, InvalidArgument, NotFound, Refusal
from holdfast.runtime import procfs
from holdfast.runtime.loguri import BinaryLog, FileLog, check_binaries, inner, logs_of, read_log
from holdfast.runtime.stdio import Stdio

House = Any
Task = Any
COUNT = "i=0; while [ $i -lt {} ]; do echo line $i; i=$((i+1)); done"
# Reads fd 3 and 4 whole, keeps what it was told, says that it is ready.
DRIVER = """#!/bin/sh
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" >> {base}/told
echo $$ >> {base}/pids
cat <&4 >> {base}/stderr &
printf x >&5
exec 5>&-
cat <&3 >> {base}/stdout
wait
"""


def files_of(path: Path) -> list[Path]:
    """A log's files, the oldest first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda p: -int(p.suffix[1:]))
    return [*older, path]


def numbers(text: bytes) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines()]


def driver(tmp_path: Path, text: str = DRIVER) -> str:
    program = tmp_path / "driver"
    program.write_text(text.format(base=tmp_path))
    program.chmod(0o755)
    return str(program)


async def until_written(path: Path, wanted: bytes, within_s: float = 20.0) -> None:
    with trio.fail_after(within_s):
        while not (path.exists() and wanted in path.read_bytes()):
            await trio.sleep(0.01)


async def until_reaped(pid: int) -> None:
    with trio.fail_after(5):
        while procfs.identity(pid) is not None:
            await trio.sleep(0.01)


async def run(house: House, args: Sequence[str], uri: str, stderr: str | None = None) -> Task:
    task = await house.task(args)
    await task.create(Stdio(stdout=uri, stderr=uri if stderr is None else stderr))
    await task.client.start()
    return task


def logger_of(task: Task) -> int:
    """The pid of the logger that lives; 0 when there is none."""
    noted = procfs.read_identity(f"{task.bundle}/init.logger")
    return noted.pid if noted is not None and procfs.identity(noted.pid) == noted else 0


# ---------------------------------------------------------------- what a URI means


@pytest.mark.parametrize(
    ("uri", "wanted"),
    [
        ("", None),
        ("/run/x/stdout", None),
        ("fifo:///run/x/stdout", None),
        ("file:///p", None),
        ("file:///p?mode=x", None),
        ("file:///p?max-size=10MiB", FileLog(path="/p", size_bytes_max=10 << 20, files_max=5)),
        (
            "file:///a%20b?max-size=64k&max-files=3",
            FileLog(path="/a b", size_bytes_max=64000, files_max=3),
        ),
        ("binary:///bin/log", BinaryLog(path="/bin/log", args=())),
        (
            "binary:///bin/log?b=2&a=1&b=3&c",
            BinaryLog(path="/bin/log", args=("b", "2", "a", "1", "c", "")),
        ),
    ],
)
def test_a_uri_says_who_logs(uri: str, wanted: object) -> None:
    assert read_log(uri) == wanted


@pytest.mark.parametrize(
    "uri",
    [
        "file:///p?max-size=ten",
        "file:///p?max-size=1",
        "file:///p?max-files=3",
        "file:///p?max-size=1MiB&max-files=0",
        "file:///p?max-size=1MiB&max-sise=1MiB",
        "file://host/p?max-size=1MiB",
        "binary://host/p",
        "binary://[x/p",
    ],
)
def test_a_uri_that_makes_no_sense_is_refused(uri: str) -> None:
    with pytest.raises(Refusal):
        logs_of(Stdio(stdout=uri))


def test_both_streams_of_a_binary_go_to_one_program() -> None:
    uri = "binary:///p"
    assert logs_of(Stdio(stdout=uri)) == logs_of(Stdio(stdout=uri, stderr=uri))
    assert logs_of(Stdio(stdout=uri, stderr=uri, terminal=True))[1] is None
    for odd in (Stdio(stdout="", stderr=uri), Stdio(stdout=uri, stderr="/f")):
        with pytest.raises(InvalidArgument):
            logs_of(odd)
    found = inner(Stdio(stdin="/in", stdout=uri), "/b", "init")
    assert found == Stdio(stdin="/in", stdout="/b/init.log-1", stderr="/b/init.log-2")


def test_one_file_for_both_streams_has_one_fifo() -> None:
    uri = "file:///p?max-size=1MiB"
    found = inner(Stdio(stdout=uri, stderr=uri), "/b", "exec-x")
    assert found.stdout == found.stderr == "/b/exec-x.log-1"
    other = inner(Stdio(stdout="/fifo", stderr=uri), "/b", "exec-x")
    assert (other.stdout, other.stderr) == ("/fifo", "/b/exec-x.log-2")


def test_only_programs_of_the_folder_may_be_run(tmp_path: Path) -> None:
    folder = tmp_path / "loggers"
    folder.mkdir()
    inside, outside = folder / "ok", tmp_path / "outside"
    for program in (inside, outside):
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    (folder / "link").symlink_to(outside)
    (tmp_path / "elsewhere").symlink_to(folder)
    (folder / "data").write_text("")

    def ask(path: str | Path) -> None:
        check_binaries(Stdio(stdout=f"binary://{path}"), str(folder))

    ask(inside)
    for bad in (
        outside,
        folder / "link",
        tmp_path / "elsewhere/ok",
        f"{folder}/../outside",
        f"{folder}/./ok",
        folder,
        f"{folder}2/ok",
        "/bin/sh",
    ):
        with pytest.raises(FailedPrecondition, match="log_binaries"):
            ask(bad)
    with pytest.raises(NotFound):
        ask(folder / "absent")
    with pytest.raises(InvalidArgument, match="not executable"):
        ask(folder / "data")


# ---------------------------------------------------------------- files with a cap


@pytest.mark.root
async def test_a_capped_file_turns_over_and_loses_nothing(house: House, tmp_path: Path) -> None:
    log = tmp_path / "deep" / "log"
    uri = f"file://{log}?max-size=8KiB&max-files=100"
    task = await run(house, ["sh", "-c", COUNT.format(5000)], uri)
    await task.exited(within_s=30)
    await task.client.delete()
    files = files_of(log)
    assert len(files) > 5
    assert {file.stat().st_size for file in files[:-1]} == {8192}
    assert numbers(b"".join(file.read_bytes() for file in files)) == list(range(5000))
    assert not list(task.bundle.glob("init.log*"))
    assert not logger_of(task)


@pytest.mark.root
async def test_no_more_files_are_kept_than_were_asked_for(house: House, tmp_path: Path) -> None:
    for most in (1, 3):
        log = tmp_path / f"log-{most}"
        uri = f"file://{log}?max-size=4KiB&max-files={most}"
        task = await run(house, ["sh", "-c", COUNT.format(3000)], uri)
        await task.exited(within_s=30)
        await task.client.delete()
        files = files_of(log)
        assert len(files) == most
        kept = b"".join(file.read_bytes() for file in files).partition(b"\n")[2]
        assert numbers(kept)[-1] == 2999
        assert numbers(kept) == list(range(numbers(kept)[0], 3000))


@pytest.mark.root
async def test_a_turn_that_was_cut_short_pushes_nothing_out(house: House, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"a" * 8192)
    (tmp_path / "log.2").write_bytes(b"b")  # log.1 was moved here, and then came the death
    (tmp_path / "log.3").write_bytes(b"c")
    task = await run(house, ["echo", "on"], f"file://{log}?max-size=8KiB&max-files=4")
    await task.exited()
    await task.client.delete()
    found = [file.read_bytes()[:2] for file in files_of(log)]
    assert found == [b"c", b"b", b"aa", b"on"]


@pytest.mark.root
async def test_streams_may_have_files_of_their_own(house: House, tmp_path: Path) -> None:
    command = "echo out; echo err >&2"
    out, err = tmp_path / "out", tmp_path / "err"
    task = await run(
        house, ["sh", "-c", command], f"file://{out}?max-size=1M", f"file://{err}?max-size=1M"
    )
    await task.exited()
    await task.client.delete()
    assert (out.read_text(), err.read_text()) == ("out\n", "err\n")


@pytest.mark.root
async def test_a_terminal_may_be_logged(house: House, tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/log?max-size=1M"
    task = await house.task(["sh", "-c", "tty; echo seen"], terminal=True)
    await task.create(Stdio(stdout=uri, stderr=uri, terminal=True))
    await task.client.start()
    await task.exited()
    await task.client.delete()
    assert (tmp_path / "log").read_bytes() == b"/dev/pts/0\r\nseen\r\n"


@pytest.mark.root
async def test_an_exec_is_logged_like_a_task(house: House, tmp_path: Path) -> None:
    task = await house.task(["sleep", "1000"])
    await task.create()
    await task.client.start()
    uri = f"binary://{driver(tmp_path)}?key=value"
    spec = b'{"args": ["echo", "hello"], "cwd": "/", "env": ["PATH=/bin"], "user": {}}'
    for number in (1, 2):
        await task.client.exec("x", spec, Stdio(stdout=uri, stderr=uri))
        await task.client.start("x")
        await task.exited("x")
        task.events.clear()
        await task.client.delete("x")
        assert (tmp_path / "stdout").read_text() == "hello\n" * number
    # As containerd tells it, an exec's id in the place of the container's.
    assert (tmp_path / "told").read_text() == "tests x key value\n" * 2
    assert not list(task.bundle.glob("exec-x*"))
    await task.client.kill(9)
    await task.exited()
    await task.client.delete()


# ---------------------------------------------------------------- logging binaries


@pytest.mark.root
async def test_a_binary_gets_both_streams_and_is_gone_after_the_delete(
    house: House, tmp_path: Path
) -> None:
    uri = f"binary://{driver(tmp_path)}?b=2&a=1"
    command = COUNT.format(3000) + "; echo bad >&2"
    task = await run(house, ["sh", "-c", command], uri)
    await task.exited(within_s=30)
    await task.client.delete()
    assert numbers((tmp_path / "stdout").read_bytes()) == list(range(3000))
    assert (tmp_path / "stderr").read_text() == "bad\n"
    assert (tmp_path / "told").read_text() == f"tests {task.id} b 2 a 1\n"
    [pid] = (tmp_path / "pids").read_text().split()
    await until_reaped(int(pid))


@pytest.mark.root
async def test_a_binary_sees_nothing_of_the_shim(house: House, tmp_path: Path) -> None:
    text = """#!/bin/sh
    ls -l /proc/self/fd > {base}/fds
    env > {base}/env
    readlink /proc/self/ns/mnt > {base}/ns
    printf x >&5
    cat <&3 > {base}/stdout
    """
    task = await run(house, ["echo", "done"], f"binary://{driver(tmp_path, text)}")
    await task.exited()
    await task.client.delete()
    fds = (tmp_path / "fds").read_text()
    numbers_seen = {line.split()[8] for line in fds.splitlines()[1:]}
    assert {"0", "1", "2", "3", "4", "5"} <= numbers_seen
    assert "shim.lock" not in fds
    assert "socket" not in fds
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"CONTAINER_ID", "CONTAINER_NAMESPACE", "PWD", "OLDPWD", "SHLVL", "_"}
    assert (tmp_path / "ns").read_text().strip() == os.readlink("/proc/self/ns/mnt")


@pytest.mark.root
@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 3\n", "#!/nowhere/interpreter\n"])
async def test_a_binary_that_does_not_come_to_be_is_told(
    house: House, tmp_path: Path, text: str
) -> None:
    uri = f"binary://{driver(tmp_path, text)}"
    task = await house.task(["true"])
    with pytest.raises(Refusal, match="driver"):
        await task.create(Stdio(stdout=uri, stderr=uri))
    assert not list(task.bundle.glob("init.log*"))


@pytest.mark.root
async def test_a_binary_that_dies_is_followed_by_another(house: House, tmp_path: Path) -> None:
    """It reads nothing before it is killed: all that is in the pipe is the next one's."""
    text = DRIVER.replace("cat <&3", "[ -e {base}/go ] || exec sleep 1000\ncat <&3")
    command = COUNT.format(500) + "; echo end; sleep 1000"
    task = await run(house, ["sh", "-c", command], f"binary://{driver(tmp_path, text)}")
    first = logger_of(task)
    await trio.sleep(0.3)
    (tmp_path / "go").touch()
    os.kill(first, signal.SIGKILL)
    await until_written(tmp_path / "stdout", b"end")
    found = (tmp_path / "stdout").read_bytes().removesuffix(b"end\n")
    assert numbers(found) == list(range(500))
    assert logger_of(task) not in (0, first)
    await task.client.kill(9)
    await task.exited()
    await task.client.delete()


@pytest.mark.root
async def test_a_binary_that_dies_at_the_end_leaves_nothing_unread(
    house: House, tmp_path: Path
) -> None:
    text = DRIVER.replace("cat <&3", "[ -e {base}/go ] || exec sleep 1000\ncat <&3")
    task = await run(house, ["sh", "-c", COUNT.format(500)], f"binary://{driver(tmp_path, text)}")
    await task.exited()
    await trio.sleep(0.3)
    (tmp_path / "go").touch()
    os.kill(logger_of(task), signal.SIGKILL)
    await task.client.delete()
    assert numbers((tmp_path / "stdout").read_bytes()) == list(range(500))


@pytest.mark.root
async def test_a_binary_that_does_not_end_is_ended(house: House, tmp_path: Path) -> None:
    text = DRIVER.replace("wait\n", "exec sleep 1000\n")
    task = await run(house, ["echo", "short"], f"binary://{driver(tmp_path, text)}")
    await task.exited()
    pid = logger_of(task)
    began = time.monotonic()
    await task.client.delete()
    assert time.monotonic() - began < 8
    await until_reaped(pid)
    assert (tmp_path / "stdout").read_text() == "short\n"


# ---------------------------------------------------------------- deaths


@pytest.mark.root
@pytest.mark.parametrize("scheme", ["file", "binary"])
async def test_shims_die_and_no_line_is_lost(house: House, tmp_path: Path, scheme: str) -> None:
    """With a capped file also its logger, which is ours, is killed with the shim each time."""
    log = tmp_path / "stdout"
    uri = f"file://{log}?max-size=16KiB&max-files=1000"
    if scheme == "binary":
        uri = f"binary://{driver(tmp_path)}"
    count = "i=0; while [ ! -e /stop/stop ]; do echo line $i; i=$((i+1)); done; echo line $i"
    task = house.bundle(["sh", "-c", count + "; exec sleep 0.1"])
    stop = tmp_path / "stop"
    stop.mkdir()
    config = (task.bundle / "config.json").read_text()
    bind = f'{{"destination": "/stop", "type": "bind", "source": "{stop}", "options": ["bind"]}}'
    (task.bundle / "config.json").write_text(config.replace('"mounts": [', f'"mounts": [{bind}, '))
    await task.connect()
    await task.create(Stdio(stdout=uri, stderr=uri))
    await task.client.start()
    for _ in range(4):
        await trio.sleep(0.3)
        logger = logger_of(task)
        assert logger
        os.kill(task.shim_pid, signal.SIGKILL)
        if scheme == "file":
            with contextlib.suppress(ProcessLookupError):
                os.kill(logger, signal.SIGKILL)
        await trio.sleep(0.2)
        await task.connect(adopt=True)
        if scheme == "binary":
            assert logger_of(task) == logger
    (stop / "stop").touch()
    await task.exited()
    await task.client.delete()
    found = b"".join(file.read_bytes() for file in files_of(log))
    seen = numbers(found)
    assert len(seen) > 1000
    assert seen == list(range(len(seen)))
    assert not stat.S_ISFIFO(log.stat().st_mode)


@pytest.mark.root
@pytest.mark.parametrize("dies_too", [False, True])
async def test_a_delete_that_is_cut_short_still_reads_all(
    house: House, tmp_path: Path, dies_too: bool
) -> None:
    text = DRIVER.replace("cat <&3", "until [ -e {base}/go ]; do sleep 0.05; done\ncat <&3")
    task = await run(house, ["sh", "-c", COUNT.format(500)], f"binary://{driver(tmp_path, text)}")
    await task.exited()
    logger = logger_of(task)

    async def delete() -> None:
        with contextlib.suppress(Refusal):
            await task.client.delete()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        await trio.sleep(0.5)
        os.kill(task.shim_pid, signal.SIGKILL)
        if dies_too:
            os.kill(logger, signal.SIGKILL)
        await task.client.closed.wait()
    await task.connect(adopt=True)
    (tmp_path / "go").touch()
    assert (await task.client.delete()).status == 0
    assert numbers((tmp_path / "stdout").read_bytes()) == list(range(500))
    assert not list(task.bundle.glob("init.log*"))
