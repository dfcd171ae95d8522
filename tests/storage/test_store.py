"""The store keeps what it acknowledged, tells it at once, and shares its syncs."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from holdfast.actors.errors import AlreadyExists, DataLoss, ResourceExhausted
from holdfast.storage.database import checksum_of
from holdfast.storage.store import (
    Change,
    Journal,
    SchemaTooNew,
    Store,
    StoreFault,
    StoreLocked,
    Transaction,
)

R = TypeVar("R")


def put(key: str, value: dict[str, Any], tx: Transaction) -> None:
    tx.put("container", "default", key, value)


class Gate:
    """Holds the writer inside a job, so that the jobs after it form one group."""

    def __init__(self) -> None:
        self._begun = threading.Event()
        self._open = threading.Event()

    def work(self, _: Transaction) -> None:
        self._begun.set()
        assert self._open.wait(5)

    async def held(self) -> None:
        assert await trio.to_thread.run_sync(self._begun.wait, 5)

    async def open(self) -> None:
        await trio.testing.wait_all_tasks_blocked()
        self._open.set()


async def test_what_was_written_is_read_at_once_and_after_reopening(tmp_path: Path) -> None:
    value = {"labels": {"a": "b"}, "spec": b"\x00\xff", "at": 2**62, "none": None, "list": [1, 2]}
    async with Store.open(tmp_path / "meta.db") as store:
        await store.write(partial(put, "web", value))
        assert store.get("container", "default", "web") == value
    async with Store.open(tmp_path / "meta.db") as store:
        assert store.get("container", "default", "web") == value
        assert store.get("container", "other", "web") is None


async def test_a_write_returns_the_result_of_its_job(store: Store) -> None:
    await store.write(partial(put, "web", {"n": 1}))
    assert await store.write(lambda tx: tx.get("container", "default", "web")) == {"n": 1}
    assert await store.write(lambda tx: tx.get("container", "default", "none")) is None


async def test_what_a_job_raises_is_raised_at_its_caller_and_nothing_stays(store: Store) -> None:
    def refused(tx: Transaction) -> None:
        put("web", {}, tx)
        tx.emit("default", "/t", "T", {})
        raise AlreadyExists("no")

    def faulty(tx: Transaction) -> None:
        put("web", {}, tx)
        raise ZeroDivisionError

    with pytest.raises(AlreadyExists, match="no"):
        await store.write(refused)
    with pytest.raises(ZeroDivisionError):
        await store.write(faulty)
    assert store.get("container", "default", "web") is None
    assert store.events.last_seq == 0
    assert await store.write(lambda tx: tx.get("container", "default", "web")) is None


async def test_a_failing_job_does_not_harm_its_group(store: Store) -> None:
    gate = Gate()

    def failing(tx: Transaction) -> None:
        put("bad", {}, tx)
        raise AlreadyExists("no")

    async def refused() -> None:
        with pytest.raises(AlreadyExists):
            await store.write(failing)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, gate.work)
        await gate.held()
        for key in "abc":
            nursery.start_soon(store.write, partial(put, key, {}))
            nursery.start_soon(refused)
        await gate.open()
    assert [row.key for row in store.scan("container", "default")] == ["a", "b", "c"]
    assert store.commits == 2


async def test_many_writers_share_few_commits(store: Store) -> None:
    writers = 1000
    before = store.commits
    async with trio.open_nursery() as nursery:
        for number in range(writers):
            nursery.start_soon(store.write, partial(put, f"c{number}", {"n": number}))
    assert store.count("container", "default") == writers
    assert store.commits - before <= writers / 50


async def test_waiting_writers_are_bounded_and_all_served(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "meta.db", writes_max=3, group_max=2) as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(store.write, partial(put, f"c{number}", {}))
        assert store.count("container") == 20
        assert store.commits >= 10


async def test_callers_are_answered_in_the_order_of_the_commit(store: Store) -> None:
    order: list[int] = []

    async def write(number: int) -> None:
        def work(tx: Transaction) -> int:
            return tx.emit("default", "/t", "T", {"n": number})

        order.append(await store.write(work))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(write, number)
    assert sorted(order) == list(range(1, 51))
    assert store.events.last_seq == 50


async def test_a_job_sees_its_own_writes_and_those_before(store: Store) -> None:
    def work(tx: Transaction) -> list[Any]:
        put("b", {"n": 1}, tx)
        put("a", {"n": 2}, tx)
        seen: list[Any] = [list(tx.scan("container", "default")), tx.keys("container", "default")]
        seen.append(tx.delete("container", "default", "a"))
        seen.append(tx.delete("container", "default", "a"))
        seen.append(tx.exists("container", "default", "a"))
        return seen

    rows, keys, first, second, exists = await store.write(work)
    assert [(row.namespace, row.key, row.value) for row in rows] == [
        ("default", "a", {"n": 2}),
        ("default", "b", {"n": 1}),
    ]
    assert keys == ["a", "b"]
    assert (first, second, exists) == (True, False, False)


async def test_scans_are_ordered_and_cut_by_namespace_and_prefix(store: Store) -> None:
    def work(tx: Transaction) -> None:
        for namespace in ("two", "one"):
            for key in ("overlayfs/b", "overlayfs/a", "native/a", "overlayfs2/x"):
                tx.put("snapshot", namespace, key, {})

    await store.write(work)

    def keys(rows: Any) -> list[tuple[str, str]]:
        return [(row.namespace, row.key) for row in rows]

    assert keys(store.scan("snapshot", "one", "overlayfs/")) == [
        ("one", "overlayfs/a"),
        ("one", "overlayfs/b"),
    ]
    assert [row.namespace for row in store.scan("snapshot")] == ["one"] * 4 + ["two"] * 4
    assert keys(store.scan("snapshot", "three")) == []
    in_job = await store.write(lambda tx: keys(tx.scan("snapshot", "one", "overlayfs/")))
    assert in_job == keys(store.scan("snapshot", "one", "overlayfs/"))
    everywhere = await store.write(lambda tx: keys(tx.scan("snapshot")))
    assert everywhere == keys(store.scan("snapshot"))


async def test_a_scan_for_a_text_finds_all_that_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    labels = {"a": {"restart": "no"}, "b": {}, "c": {"x": "restart"}}
    async with Store.open(path) as store:
        for key, value in labels.items():
            await store.write(partial(put, key, {"labels": value}))
        assert {"a", "c"} <= {row.key for row in store.scan("container", mentioning="restart")}
    async with Store.open(path) as store:
        found = [(row.key, row.value) for row in store.scan("container", mentioning="restart")]
        assert found == [(key, {"labels": labels[key]}) for key in ("a", "c")]
        assert store.get("container", "default", "b") == {"labels": {}}
        await store.write(partial(put, "b", {"labels": {"restart": "yes"}}))
        assert len(list(store.scan("container", mentioning="restart"))) == 3


async def test_a_scan_survives_commits_between_its_steps(store: Store) -> None:
    for key in "abc":
        await store.write(partial(put, key, {}))
    rows = store.scan("container", "default")
    assert next(rows).key == "a"
    await store.write(lambda tx: tx.delete("container", "default", "b"))
    await store.write(partial(put, "aa", {}))
    assert [row.key for row in rows] == ["c"]


async def test_readers_do_not_share_the_writers_objects(store: Store) -> None:
    value = {"labels": {"a": "b"}}
    await store.write(partial(put, "web", value))
    value["labels"]["a"] = "changed"
    assert store.get("container", "default", "web") == {"labels": {"a": "b"}}


async def test_the_first_object_brings_its_namespace_into_being(store: Store) -> None:
    await store.write(partial(put, "web", {}))
    await store.write(lambda tx: tx.put("task", "tasks-alone", "web", {}))
    assert [row.key for row in store.scan("namespace", "")] == ["default"]


async def test_listeners_hear_each_change_until_they_stop(store: Store) -> None:
    heard: list[Change] = []
    stop = store.listen(heard.extend)
    await store.write(partial(put, "web", {"n": 1}))
    await store.write(lambda tx: tx.delete("container", "default", "web"))
    stop()
    await store.write(partial(put, "web", {}))
    assert heard == [
        Change("namespace", "", "default", {"labels": {}}),
        Change("container", "default", "web", {"n": 1}),
        Change("container", "default", "web", None),
    ]


async def test_a_journal_holds_what_is_put_until_it_is_closed(store: Store) -> None:
    journal = Journal()
    await store.write(lambda tx: tx.keep_journal(journal))
    await store.write(partial(put, "web", {}))
    assert ("container", "default", "web") in journal.keys
    journal.closed = True
    await store.write(lambda tx: tx.keep_journal(Journal()))
    await store.write(partial(put, "other", {}))
    assert ("container", "default", "other") not in journal.keys


async def test_a_cancelled_writer_withdraws_a_job_that_has_not_begun(store: Store) -> None:
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, gate.work)
        await gate.held()
        with trio.move_on_after(0.01) as scope:
            await store.write(partial(put, "web", {}))
        await gate.open()
    assert scope.cancelled_caught
    await store.write(partial(put, "later", {}))
    assert store.get("container", "default", "web") is None


async def test_a_database_in_use_is_refused(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "meta.db") as store:
        with pytest.raises(StoreLocked):
            async with Store.open(tmp_path / "meta.db"):
                pass
        await store.write(partial(put, "web", {}))
    async with Store.open(tmp_path / "meta.db") as store:
        assert store.count("container") == 1


async def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    async with Store.open(path) as store:
        await store.write(partial(put, "web", {}))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SchemaTooNew, match="schema 999"):
        async with Store.open(path):
            pass
    assert path.read_bytes() == before


BAD = ("container", "default", "bad")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("value = x'ff'", "checksum differs"),
        ("value = 7", "row does not decode"),
        (f"value = x'01', checksum = {checksum_of(bytes([0x01]), BAD)}", "not a map"),
        (f"value = x'5c', checksum = {checksum_of(bytes([0x5C]), BAD)}", "row does not decode"),
        ("key = CAST(x'62ff' AS TEXT)", "row does not decode"),
        ("key = 'bad!'", "checksum differs"),
        ("kind = 'image'", "checksum differs"),
    ],
)
async def test_a_damaged_record_is_set_aside_and_the_rest_opens(
    tmp_path: Path, damage: str, reason: str
) -> None:
    path = tmp_path / "meta.db"
    async with Store.open(path) as store:
        for key in ("bad", "good"):
            await store.write(partial(put, key, {}))
    with sqlite3.connect(path) as connection:
        update = f"UPDATE record SET {damage} WHERE key = 'bad'"
        assert connection.execute(update).rowcount == 1
    connection.close()
    for _ in range(2):
        async with Store.open(path) as store:
            assert [row.key for row in store.scan("container")] == ["good"]
            (damaged,) = store.damaged
            assert damaged.kind in ("container", "image")
            assert damaged.key.startswith("b")
            assert reason in damaged.reason
            await store.write(partial(put, "good", {}))


async def test_damage_found_by_a_job_is_data_loss(store: Store) -> None:
    await store.write(partial(put, "web", {}))
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE record SET checksum = 0 WHERE key = 'web'")
    connection.close()
    with pytest.raises(DataLoss, match='container "web"'):
        await store.write(lambda tx: tx.get("container", "default", "web"))


async def test_a_full_disk_refuses_the_large_and_keeps_the_small(store: Store) -> None:
    gate = Gate()

    def limit(tx: Transaction) -> None:
        gate.work(tx)
        (pages,) = tx._database.connection.execute("PRAGMA page_count").fetchone()
        tx._database.connection.execute(f"PRAGMA max_page_count = {pages + 2}")

    async def large() -> None:
        with pytest.raises(ResourceExhausted, match="no space left"):
            await store.write(partial(put, "large", {"blob": os.urandom(1 << 20)}))

    await store.write(partial(put, "old", {}))
    await store.write(lambda tx: tx.delete("container", "default", "none"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.write, limit)
        await gate.held()
        nursery.start_soon(large)
        nursery.start_soon(store.write, partial(put, "small", {}))
        nursery.start_soon(store.write, lambda tx: tx.delete("container", "default", "old"))
        await gate.open()
    assert [row.key for row in store.scan("container")] == ["small"]


async def test_a_broken_database_fails_its_writers_and_says_so(store: Store) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR

    def breaking(tx: Transaction) -> None:
        raise error

    with pytest.raises(StoreFault, match="disk I/O error"):
        await store.write(breaking)
    with pytest.raises(StoreFault):
        await store.write(partial(put, "web", {}))
    with trio.fail_after(1):
        assert isinstance(await store.wait_fault(), StoreFault)
    assert store.get("container", "default", "web") is None


WRITER = """
import sys, trio
from pathlib import Path
from holdfast.storage.store import Store

async def write(store, worker):
    for number in range(100_000):
        def work(tx, number=number):
            tx.put("container", "default", f"{worker}-{number}", {"n": number})
            tx.emit("default", "/t", "T", {"n": number})
        await store.write(work)
        print(f"{worker}-{number}", flush=True)

async def main():
    async with Store.open(Path(sys.argv[1])) as store, trio.open_nursery() as nursery:
        for worker in range(8):
            nursery.start_soon(write, store, worker)

trio.run(main)
"""


@pytest.mark.parametrize("lines_before_kill", [1, 40, 333])
async def test_acknowledged_writes_survive_kill_9(tmp_path: Path, lines_before_kill: int) -> None:
    path = tmp_path / "meta.db"
    environment = {**os.environ, "COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}

    def write_and_kill() -> list[str]:
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(lines_before_kill)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        return [line.strip() for line in lines if line.endswith("\n")]

    with trio.fail_after(20):
        acknowledged = await trio.to_thread.run_sync(write_and_kill)
    assert len(acknowledged) >= lines_before_kill
    async with Store.open(path) as store:
        for key in acknowledged:
            record = store.get("container", "default", key)
            assert record == {"n": int(key.partition("-")[2])}
        # State and event are one: as many events as records, in one unbroken sequence.
        events = await store.events.read(0, limit=1_000_000)
        assert [event.seq for event in events] == list(range(1, store.count("container") + 1))


class Portal:
    """A store in a trio thread of its own, for tests that are not async."""

    def __init__(self, path: Path) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main, path))
        self._thread.start()
        assert self._ready.wait(5)

    async def _main(self, path: Path) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with Store.open(path, events_kept_max=16) as self.store:
            self._ready.set()
            await self._stop.wait()

    def run(self, function: Callable[..., Awaitable[R]], *args: Any) -> R:
        return trio.from_thread.run(function, *args, trio_token=self._token)

    def close(self) -> None:
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join(5)


NAMES = st.sampled_from(["a", "b", "a/x", "é", "\0", ""])
VALUES = st.dictionaries(st.text(max_size=3), st.integers() | st.binary() | st.text(max_size=3))
Key = tuple[str, str, str]


class StoreAgainstDict(RuleBasedStateMachine):
    """The store behaves as a dict and a list of events, also when it is reopened."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name) / "meta.db"
        self._portal = Portal(self._path)
        self._records: dict[Key, dict[str, Any]] = {}
        self._events = 0

    def _write(self, work: Callable[[Transaction], R]) -> R:
        return self._portal.run(self._portal.store.write, work)

    @rule(kind=NAMES, namespace=NAMES, key=NAMES, value=VALUES)
    def put(self, kind: str, namespace: str, key: str, value: dict[str, Any]) -> None:
        self._write(lambda tx: tx.put(kind, namespace, key, value))
        self._records[kind, namespace, key] = value

    @rule(kind=NAMES, namespace=NAMES, key=NAMES)
    def delete(self, kind: str, namespace: str, key: str) -> None:
        deleted = self._write(lambda tx: tx.delete(kind, namespace, key))
        assert deleted == ((kind, namespace, key) in self._records)
        self._records.pop((kind, namespace, key), None)

    @rule(kind=NAMES, namespace=NAMES, key=NAMES, value=VALUES)
    def put_and_fail(self, kind: str, namespace: str, key: str, value: dict[str, Any]) -> None:
        def work(tx: Transaction) -> None:
            tx.put(kind, namespace, key, value)
            tx.emit("n", "/t", "T", value)
            raise AlreadyExists("no")

        with pytest.raises(AlreadyExists):
            self._write(work)

    @rule(value=VALUES, count=st.integers(1, 7))
    def emit(self, value: dict[str, Any], count: int) -> None:
        def work(tx: Transaction) -> list[int]:
            return [tx.emit("n", "/t", "T", value) for _ in range(count)]

        assert self._write(work) == list(range(self._events + 1, self._events + count + 1))
        self._events += count

    @rule()
    def reopen(self) -> None:
        self._portal.close()
        self._portal = Portal(self._path)

    @invariant()
    def the_models_equal_the_dict(self) -> None:
        store = self._portal.store
        for kind in {kind for kind, _, _ in self._records}:
            expected = sorted(
                (namespace, key, value)
                for (one, namespace, key), value in self._records.items()
                if one == kind
            )
            assert [tuple(row) for row in store.scan(kind)] == expected
            assert store.count(kind) == len(expected)
        assert store.events.last_seq == self._events

    @invariant()
    def the_log_keeps_the_newest(self) -> None:
        store = self._portal.store
        events = self._portal.run(store.events.read, 0)
        assert [event.seq for event in events] == list(
            range(store.events.first_seq, self._events + 1)
        )
        assert min(16, self._events) <= len(events) <= 16

    def teardown(self) -> None:
        self._portal.close()
        self._directory.cleanup()


StoreAgainstDict.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
test_the_store_behaves_as_a_dict = StoreAgainstDict.TestCase
