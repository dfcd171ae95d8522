"""The embedded host, with real containers."""

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples import busybox_image

import holdfast
from holdfast.actors.errors import FailedPrecondition, InvalidArgument, NotFound
from holdfast.api.host import Host
from holdfast.runtime.spec import BindMount

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    archive = tmp_path / "busybox.tar"
    busybox_image.build(archive)
    async with holdfast.open(root=tmp_path / "root", state=tmp_path / "state") as opened:
        names = await opened.import_archive(archive)
        assert list(names) == [busybox_image.DEFAULT_NAME]
        yield opened


async def test_a_host_runs_a_container_to_its_end(host: Host, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the host\n")
    done = await host.run(
        "busybox",
        ["sh", "-c", "cat /data/note; echo $COLOUR >&2; exit 3"],
        env=["COLOUR=blue"],
        binds=[BindMount(source=str(tmp_path), target="/data", read_only=True)],
    )
    assert (done.status, done.stdout, done.stderr) == (3, b"from the host\n", b"blue\n")
    with pytest.raises(NotFound):
        host.containers.get("default", done.name)
    assert not list((tmp_path / "state" / "tasks").rglob(f"*{done.name}*"))


async def test_a_container_is_created_then_started(host: Host) -> None:
    made = await host.create("busybox", ["echo", "late"], name="late")
    assert host.task("late").status == "CREATED"
    assert Path(f"/proc/{made.pid}/ns/net").exists()
    await host.start("late")
    assert await host.wait("late") == 0
    assert made.stdout.read_text() == "late\n"
    await host.remove("late")


async def test_a_removal_that_was_cut_short_is_finished(host: Host) -> None:
    made = await host.create("busybox", ["true"], name="half")
    await host.tasks.delete("default", "half")
    snapshot = host.containers.get("default", "half").snapshot_key
    await host.snapshotter().remove("default", snapshot)
    await host.remove("half")
    assert host.containers.list("default") == []
    assert not made.stdout.exists()


async def test_what_cannot_start_leaves_nothing(host: Host) -> None:
    before = {info.name for info in host.snapshotter().walk("default")}
    with pytest.raises(Exception, match="never-was"):
        await host.launch("busybox", ["/never-was"], name="broken")
    with pytest.raises(NotFound):
        await host.run("nowhere.org/never:was", ["true"])
    with pytest.raises(InvalidArgument):
        await host.run("busybox", ["true"], cpus=-1.0)
    assert host.containers.list("default") == []
    assert {info.name for info in host.snapshotter().walk("default")} == before


async def test_a_running_container_outlives_its_killed_actor(host: Host) -> None:
    made = await host.launch("busybox", ["sleep", "1000"], name="steady")
    await host.kill_actor(host.task_actor("steady"))
    with trio.fail_after(10):
        while not host.crashes.reports():
            await trio.sleep(0.05)
        await host.kill("steady")
        assert await host.wait("steady") == 137
    assert host.task("steady").pid == made.pid
    (report,) = host.crashes.reports()
    assert report.child == host.task_actor("steady")
    assert "steady" in host.tree_text()
    await host.remove("steady")


async def test_a_root_has_one_host_at_a_time(host: Host, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="in use by another host"):
        async with holdfast.open(root=tmp_path / "root", state=tmp_path / "state"):
            raise AssertionError("a second host opened")


async def test_directories_are_for_the_owner_alone(host: Host, tmp_path: Path) -> None:
    for name in ("root", "state"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


async def test_a_container_runs_on_while_no_host_does_and_is_taken_up_again(
    tmp_path: Path,
) -> None:
    archive = tmp_path / "busybox.tar"
    busybox_image.build(archive)
    root, state = tmp_path / "root", tmp_path / "state"
    script = "i=0; while test ! -e /go; do i=$((i+1)); echo $i; sleep 0.05; done; exit 9"
    async with holdfast.open(root=root, state=state) as host:
        await host.import_archive(archive)
        made = await host.launch("busybox", ["sh", "-c", script], name="count")
    assert Path(f"/proc/{made.pid}").exists()
    before = len(made.stdout.read_text().split())
    await trio.sleep(0.5)
    async with holdfast.open(root=root, state=state) as host:
        assert host.task("count").pid == made.pid
        with trio.fail_after(10):
            while "count" not in host.tree_text():
                await trio.sleep(0.05)
        await host.tasks.exec("default", "count", "go", b'{"args":["touch","/go"],"cwd":"/"}')
        await host.tasks.start("default", "count", "go")
        with trio.fail_after(10):
            assert await host.wait("count") == 9
        numbers = [int(line) for line in made.stdout.read_text().split()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) > before
        await host.remove("count")


def test_the_package_offers_open_and_host_and_nothing_else() -> None:
    assert holdfast.Host is Host
    with pytest.raises(AttributeError):
        _ = holdfast.never_was  # type: ignore[attr-defined]
