"""Programs of others end within their bounds, and leave nobody behind."""

from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import DeadlineExceeded, ResourceExhausted, Unavailable
from holdfast.runtime import procfs
from holdfast.storage.programs import SAID_MAX, run_program

LEAVES = "sleep 1000 & echo $! >pid; "


async def ends(folder: Path) -> None:
    """Wait until the child is gone: a signal takes its time."""
    pid = int((folder / "pid").read_text())
    with trio.fail_after(10):
        while (found := procfs.stat(pid)) is not None and found.state not in "ZX":
            await trio.sleep(0.01)


async def test_a_program_hears_and_is_heard(tmp_path: Path) -> None:
    script = "cat; pwd; echo $COLOUR; echo wrong >&2; exit 3"
    env = {"COLOUR": "blue", "PATH": "/bin"}
    ran = await run_program(["sh", "-c", script], stdin=b"in\n", cwd=tmp_path, env=env)
    assert (ran.status, ran.end, ran.complaint) == (3, "exit status 3", "wrong")
    assert ran.stdout.decode() == f"in\n{tmp_path}\nblue\n"
    killed = await run_program(["sh", "-c", "yes no | head -c 100000 >&2; kill -9 $$"])
    assert killed.end == "signal 9"
    assert 4000 < len(killed.complaint) <= 4096
    much = await run_program(["head", "-c", str(SAID_MAX), "/dev/zero"])
    assert (much.status, len(much.stdout)) == (0, SAID_MAX)


async def test_one_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    with trio.fail_after(10), pytest.raises(DeadlineExceeded, match=r"no end in 0\.5 s"):
        await run_program(["sh", "-c", f"trap '' TERM; {LEAVES}wait"], cwd=tmp_path, within_s=0.5)
    await ends(tmp_path)


async def test_one_that_says_too_much_is_killed_with_its_children(tmp_path: Path) -> None:
    with trio.fail_after(10), pytest.raises(ResourceExhausted, match="more than"):
        await run_program(["sh", "-c", f"{LEAVES}yes >&2"], cwd=tmp_path)
    await ends(tmp_path)


async def test_the_end_of_its_caller_is_its_own(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await run_program(["sh", "-c", f"{LEAVES}wait"], cwd=tmp_path)

        nursery.start_soon(run)
        with trio.fail_after(10):
            while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await ends(tmp_path)


@pytest.mark.parametrize("program", ["/no/such/program", "/etc"])
async def test_what_cannot_be_run_is_unavailable(program: str) -> None:
    with pytest.raises(Unavailable, match=program):
        await run_program([program])
