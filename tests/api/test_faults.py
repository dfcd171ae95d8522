"""`holdfast faults` against a host whose database was damaged."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from holdfast.api.host import Host, embedded, open_host
from holdfast.api.sockets import serving
from holdfast.storage.snapshotrecord import Place

pytestmark = pytest.mark.root

NS = "default"


@asynccontextmanager
async def a_host(base: Path, **settings: float) -> AsyncIterator[Host]:
    config = embedded(base / "root", base / "state", settings)
    async with open_host(replace(config, address=str(base / "sock")), serving) as host:
        yield host


async def command(base: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "holdfast", "--address", str(base / "sock"), "--wait", "5"]
    run = partial(subprocess.run, [*line, *words], capture_output=True, text=True, timeout=30)
    return await trio.to_thread.run_sync(run)


async def damaged_host(base: Path) -> None:
    """Two snapshots of which one is damaged, two blobs, a damaged image that may keep both."""
    async with a_host(base, gc_startup_delay_s=60.0) as host:
        await host.snapshotter().prepare(NS, "steady", "", {"containerd.io/gc.root": "now"})
        await host.snapshotter().prepare(NS, "told", "", {"containerd.io/gc.root": "now"})
        labels = {"containerd.io/gc.root": "now"}
        await host.content.write_blob(NS, "a", b"steady", labels=labels)
        await host.content.write_blob(NS, "b", b"garbage")
    with closing(sqlite3.connect(base / "root/holdfast.db")) as connection:
        connection.execute(
            "INSERT INTO record VALUES ('image', ?, 'example.org/one:1', x'00', 7)", (NS,)
        )
        damage = "UPDATE record SET value = x'00' WHERE kind = 'snapshot' AND key LIKE '%/told'"
        assert connection.execute(damage).rowcount == 1
        connection.commit()


async def test_faults_are_listed_removed_and_the_collector_goes_on(tmp_path: Path) -> None:
    await damaged_host(tmp_path)
    async with a_host(tmp_path) as host:
        directories = {path.name for path in (tmp_path / "root/overlayfs/snapshots").iterdir()}
        assert len(directories) == 2
        listed = await command(tmp_path, "faults", "--format", "json")
        rows = [json.loads(line) for line in listed.stdout.splitlines()]
        assert [row["kind"] for row in rows] == [
            "image record",
            "snapshot record",
            "snapshot directory",
        ]
        assert (rows[0]["namespace"], rows[0]["key"]) == (NS, "example.org/one:1")
        assert [row["held"] for row in rows] == [False, False, True]
        assert all(row["since"] and row["reason"] for row in rows)
        # Nothing is collected: a blob that nothing keeps is still there.
        await host.collector.collect()
        assert len(host.content.list(NS)) == 2

        unknown = await command(tmp_path, "faults", "remove", "nonsense")
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "fault nonsense: not found" in unknown.stderr
        misused = await command(tmp_path, "faults", "remove")
        assert misused.returncode == 2

        one = await command(tmp_path, "faults", "remove", rows[0]["id"])
        assert one.stdout == f"{rows[0]['id']}\n"
        assert len(host.content.list(NS)) == 2
        rest = await command(tmp_path, "faults", "remove", "--all")
        assert set(rest.stdout.split()) == {rows[1]["id"], rows[2]["id"]}, rest.stderr
        assert (await command(tmp_path, "faults", "--quiet")).stdout == ""

        await host.snapshotter().cleanup()
        left = [path.name for path in (tmp_path / "root/overlayfs/snapshots").iterdir()]
        assert len(left) == 1
        assert [info.name for info in host.snapshotter().walk(NS)] == ["steady"]
        assert len(host.content.list(NS)) == 1


async def test_a_snapshot_that_lost_its_directory_is_a_fault_until_it_is_removed(
    tmp_path: Path,
) -> None:
    async with a_host(tmp_path) as host:
        snapshots = host.snapshotter()
        labels = {"containerd.io/gc.root": "now"}
        await snapshots.prepare(NS, "work", "", labels)
        await snapshots.commit(NS, "base", "work", labels)
        await snapshots.prepare(NS, "child", "base", labels)
        directory = snapshots.graph.directory(snapshots.graph.require(Place(NS, "base")).id)
    subprocess.run(["rm", "-r", str(directory)], check=True)
    async with a_host(tmp_path) as host:
        snapshots = host.snapshotter()
        (fault,) = host.faults.list()
        assert (fault.kind, fault.key, fault.held) == ("snapshot", "overlayfs/base", False)
        refused = await command(tmp_path, "faults", "remove", fault.id)
        assert refused.returncode == 1
        assert "with child" in refused.stderr
        assert host.faults.list() == [fault]
        await snapshots.remove(NS, "child")
        done = await command(tmp_path, "faults", "remove", fault.id)
        assert done.stdout == f"{fault.id}\n"
        assert host.faults.list() == []
        assert snapshots.walk(NS) == []
