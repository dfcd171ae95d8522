"""Subscribers see one rising sequence, live or from the log, and know what they missed."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from holdfast.actors.errors import InvalidArgument, OutOfRange
from holdfast.storage.events import GAP_TOPIC, Event, Subscription, event_field
from holdfast.storage.store import Store, Transaction


async def emit(store: Store, count: int = 1, topic: str = "/tasks/exit", **payload: Any) -> None:
    def work(tx: Transaction) -> None:
        for number in range(count):
            tx.emit("default", topic, "containerd.events.TaskExit", {"n": number, **payload})

    await store.write(work)


async def take(subscription: Subscription, count: int) -> list[Event]:
    with trio.fail_after(5):
        return [await subscription.receive() for _ in range(count)]


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


async def test_a_subscriber_hears_what_comes_after(store: Store) -> None:
    await emit(store)
    with store.events.subscribe() as subscription:
        await emit(store, container_id="web")
        (event,) = await take(subscription, 1)
    assert event.seq == 2
    assert event.namespace == "default"
    assert event.topic == "/tasks/exit"
    assert event.type_name == "containerd.events.TaskExit"
    assert event.payload == {"n": 0, "container_id": "web"}
    assert event.timestamp_ns > 1_500_000_000_000_000_000


async def test_what_is_given_comes_first_where_it_matches(store: Store) -> None:
    def told(topic: str) -> Event:
        return Event(
            seq=0, timestamp_ns=1, namespace="default", topic=topic, type_name="x", payload={}
        )

    first = [told("/tasks/exit"), told("/images/create"), told("/tasks/oom")]
    with store.events.subscribe(["topic~=|^/tasks/|"], first=first) as subscription:
        await emit(store)
        heard = await take(subscription, 3)
    assert [event.topic for event in heard] == ["/tasks/exit", "/tasks/oom", "/tasks/exit"]
    assert seqs(heard) == [0, 0, 1]


async def test_an_event_is_heard_before_its_write_returns(store: Store) -> None:
    with store.events.subscribe() as subscription:
        await emit(store)
        with trio.testing.assert_checkpoints():
            await subscription.receive()


async def test_a_subscriber_waits_for_the_next(store: Store) -> None:
    heard: list[int] = []

    async def listen(subscription: Subscription) -> None:
        async for event in subscription:
            heard.append(event.seq)

    async with trio.open_nursery() as nursery:
        subscription = store.events.subscribe()
        nursery.start_soon(listen, subscription)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            await emit(store)
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [1, 2, 3]
        subscription.close()
        subscription.close()


async def test_an_event_is_taken_at_its_commit_and_in_its_place(store: Store) -> None:
    shown: list[tuple[str, int]] = []
    refused = {4, 9}

    def taken(event: Event) -> bool:
        if event.seq in refused:
            return False
        shown.append(("at once", event.seq))
        return True

    async def read(subscription: Subscription) -> None:
        async for event in subscription:
            shown.append(("read", event.seq))

    await emit(store)
    with store.events.subscribe(["topic~=|exit$|"], since=0, take=taken) as subscription:
        async with trio.open_nursery() as nursery:
            await emit(store)  # before anybody reads
            nursery.start_soon(read, subscription)
            await trio.testing.wait_all_tasks_blocked()
            await emit(store)
            assert shown[-1] == ("at once", 3)
            await emit(store, 3)  # the first is refused: those after it wait behind it
            await emit(store, topic="/tasks/oom")
            await trio.testing.wait_all_tasks_blocked()
            await emit(store)
            await emit(store)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert [seq for _, seq in shown] == [1, 2, 3, 4, 5, 6, 8, 9]
    at_once = [seq for how, seq in shown if how == "at once"]
    assert at_once == [3, 8]


async def test_nothing_is_taken_while_its_reader_has_one_in_hand(store: Store) -> None:
    at_once: list[int] = []

    def taken(event: Event) -> bool:
        at_once.append(event.seq)
        return True

    with store.events.subscribe(take=taken) as subscription:
        for _ in range(3):
            await emit(store)
            await take(subscription, 1)
    assert not at_once


async def test_since_replays_and_goes_on_live(store: Store) -> None:
    await emit(store, 5)
    with store.events.subscribe(since=2, queue_max=2) as subscription:
        assert subscription.lagging
        await emit(store, 2)
        assert seqs(await take(subscription, 5)) == [3, 4, 5, 6, 7]
        assert not subscription.lagging
        await emit(store)
        assert seqs(await take(subscription, 1)) == [8]
    with store.events.subscribe(since=0) as subscription:
        assert seqs(await take(subscription, 8)) == list(range(1, 9))
    with store.events.subscribe(since=8) as subscription:
        await emit(store)
        assert seqs(await take(subscription, 1)) == [9]


async def test_a_point_beyond_the_log_is_out_of_range(store: Store) -> None:
    await emit(store)
    for since in (2, -1):
        with pytest.raises(OutOfRange):
            store.events.subscribe(since=since)


async def test_the_log_outlives_the_store(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "meta.db") as store:
        await emit(store, 3)
    async with Store.open(tmp_path / "meta.db") as store:
        await emit(store)
        with store.events.subscribe(since=1) as subscription:
            assert seqs(await take(subscription, 3)) == [2, 3, 4]


async def test_a_slow_subscriber_lags_into_the_log_and_misses_nothing(store: Store) -> None:
    with store.events.subscribe(queue_max=4) as subscription:
        for _ in range(10):
            await emit(store, 3)
        assert subscription.lagging
        assert len(subscription._queue) <= 4
        assert seqs(await take(subscription, 30)) == list(range(1, 31))
        await emit(store)
        assert seqs(await take(subscription, 1)) == [31]
        assert not subscription.lagging


async def test_events_that_come_while_rows_are_read_come_once(store: Store) -> None:
    await emit(store, 50)
    heard: list[int] = []

    async def listen(subscription: Subscription) -> None:
        while len(heard) < 250:
            heard.append((await subscription.receive()).seq)

    with trio.fail_after(10), store.events.subscribe(since=0, queue_max=3) as subscription:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, subscription)
            for _ in range(100):
                await emit(store, 2)
    assert heard == list(range(1, 251))


async def test_what_the_log_forgot_is_an_explicit_gap(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "meta.db", events_kept_max=10) as store:
        with store.events.subscribe(['topic=="/none"'], queue_max=2) as slow:
            slow._lagging = True
            await emit(store, 25)
            assert store.events.first_seq == 16
            (event,) = await take(slow, 1)
            assert event.payload == {"from_seq": 1, "to_seq": 15}
        with store.events.subscribe(since=5) as subscription:
            gap, *rest = await take(subscription, 11)
    assert gap.topic == GAP_TOPIC
    assert gap.seq == 15
    assert gap.payload == {"from_seq": 6, "to_seq": 15}
    assert seqs(rest) == list(range(16, 26))


async def test_an_empty_log_is_one_gap(store: Store) -> None:
    await emit(store, 5)
    await store.write(lambda tx: tx._database.trim_events(6))
    store.events.first_seq = 6
    with store.events.subscribe(since=2) as subscription:
        (gap,) = await take(subscription, 1)
        assert gap.payload == {"from_seq": 3, "to_seq": 5}
        await emit(store)
        assert seqs(await take(subscription, 1)) == [6]


async def test_a_damaged_event_is_a_gap(store: Store) -> None:
    await emit(store, 3)
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE event SET payload = x'00' WHERE seq = 2")
    connection.close()
    with store.events.subscribe(['topic=="/tasks/exit"'], since=0) as subscription:
        events = await take(subscription, 3)
    assert [event.topic for event in events] == ["/tasks/exit", GAP_TOPIC, "/tasks/exit"]
    assert events[1].payload == {"from_seq": 2, "to_seq": 2}


async def test_filters_choose_by_topic_namespace_and_field(store: Store) -> None:
    filters = [
        'topic~="/tasks/",namespace==default,event.container_id==web',
        'topic=="/images/create"',
    ]
    with store.events.subscribe(filters) as subscription:
        await emit(store, container_id="db")
        await emit(store, container_id="web")
        await emit(store, topic="/containers/update", container_id="web")
        await emit(store, topic="/images/create")
        assert seqs(await take(subscription, 2)) == [2, 4]
    with pytest.raises(InvalidArgument):
        store.events.subscribe(["topic=="])


def event(payload: Any) -> Event:
    return Event(seq=1, timestamp_ns=0, namespace="n", topic="/t", type_name="T", payload=payload)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("namespace", ("n", True)),
        ("topic", ("/t", True)),
        ("event.id", ("web", True)),
        ("event.empty", ("", False)),
        ("event.pid", ("7", True)),
        ("event.terminal", ("true", True)),
        ("event.none", ("", False)),
        ("event.labels.a.b/c", ("x", True)),
        ("event.runtime.name", ("runc", True)),
        ("event.runtime", ("", False)),
        ("event.id.more", ("", False)),
        ("event", ("", False)),
        ("event.list", ("", False)),
        ("seq", ("", False)),
    ],
)
def test_fields_of_an_event(path: str, expected: tuple[str, bool]) -> None:
    payload = {
        "id": "web",
        "empty": "",
        "pid": 7,
        "terminal": True,
        "labels": {"a.b/c": "x"},
        "runtime": {"name": "runc"},
        "list": [1],
    }
    assert event_field(event(payload), path.split(".")) == expected


def test_an_opaque_event_shows_no_fields() -> None:
    assert event_field(event(b"\x0a\x01x"), ["event", "id"]) == ("", False)


async def test_a_published_event_keeps_its_bytes_and_time(store: Store) -> None:
    with store.events.subscribe() as subscription:
        seq = await store.events.publish(
            "default", "/a/b", "example.com/T", b"\x01", timestamp_ns=5
        )
        (event,) = await take(subscription, 1)
    assert (event.seq, event.type_name, event.payload, event.timestamp_ns) == (
        seq,
        "example.com/T",
        b"\x01",
        5,
    )
    assert (await store.events.read(0))[0] == event


@pytest.mark.parametrize(
    ("namespace", "topic", "why"),
    [
        ("", "/a", "event envelope has invalid namespace: identifier must not be empty"),
        ("default", "", 'envelope topic "": must not be empty'),
        ("default", "a", "envelope topic \"a\": must start with '/'"),
        ("default", "/", 'envelope topic "/": must have at least one component'),
        ("default", "/a//b", 'envelope topic "/a//b": failed validation on component "":'),
    ],
)
async def test_a_malformed_envelope_is_refused(
    store: Store, namespace: str, topic: str, why: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        await store.events.publish(namespace, topic, "T", b"")
    assert str(refusal.value).startswith(why)
    assert store.events.last_seq == 0
