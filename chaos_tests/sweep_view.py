"""What a daemon says it has, what its events say it has, and what lies about on the disk.

    view = await look(session)          records, as clients see them
    told = await replay(session)        the same, as the events since the beginning tell
    strays(house, view, told)           what contradicts what: empty when all agree

`strays` is a pure judgement over what was gathered; everything else only asks.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from holdfast.api.cli.session import Session
from holdfast.api.proto import events_pb2, task_types_pb2
from holdfast.api.proto.services import (
    admin_pb2,
    containers_pb2,
    content_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    tasks_pb2,
)

from .sweep_daemon import House

A = TypeVar("A", bound=Message)

SNAPSHOTTER = "overlayfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The records of a daemon. Equal when clients see the same."""

    namespaces: frozenset[str]
    containers: Mapping[str, tuple[str, ...]]
    """Id -> image, snapshot key, labels."""
    images: frozenset[str]
    content: frozenset[str]
    ingests: frozenset[str]
    snapshots: Mapping[str, str]
    """Key -> kind."""
    leases: frozenset[str]
    tasks: Mapping[str, str]
    """Id -> status."""


@dataclass(slots=True, kw_only=True)
class Told:
    """What the events add up to, and what is wrong with their order."""

    containers: set[str] = field(default_factory=set[str])
    images: set[str] = field(default_factory=set[str])
    snapshots: set[str] = field(default_factory=set[str])
    tasks: dict[str, str] = field(default_factory=dict[str, str])
    exits: dict[tuple[str, str, int], int] = field(default_factory=dict[tuple[str, str, int], int])
    wrong: list[str] = field(default_factory=list[str])
    topics: list[str] = field(default_factory=list[str])


async def look(session: Session) -> View:
    """Ask for every list."""
    call = session.call
    namespaces = await call(
        "Namespaces/List",
        namespaces_pb2.ListNamespacesRequest(),
        namespaces_pb2.ListNamespacesResponse,
    )
    containers = await call(
        "Containers/List",
        containers_pb2.ListContainersRequest(),
        containers_pb2.ListContainersResponse,
    )
    images = await call(
        "Images/List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse
    )
    ingests = await call(
        "Content/ListStatuses", content_pb2.ListStatusesRequest(), content_pb2.ListStatusesResponse
    )
    leases = (await call("Leases/List", leases_pb2.ListRequest(), leases_pb2.ListResponse)).leases
    tasks = await call("Tasks/List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse)
    content = await _all(
        session, "Content/List", content_pb2.ListContentRequest(), content_pb2.ListContentResponse
    )
    snapshots = await _all(
        session,
        "Snapshots/List",
        snapshots_pb2.ListSnapshotsRequest(snapshotter=SNAPSHOTTER),
        snapshots_pb2.ListSnapshotsResponse,
    )
    return View(
        namespaces=frozenset(one.name for one in namespaces.namespaces),
        containers={
            one.id: (
                one.image,
                one.snapshot_key,
                *(f"{k}={v}" for k, v in sorted(one.labels.items())),
            )
            for one in containers.containers
        },
        images=frozenset(one.name for one in images.images),
        content=frozenset(info.digest for answer in content for info in answer.info),
        ingests=frozenset(one.ref for one in ingests.statuses),
        snapshots={
            info.name: snapshots_pb2.Kind.Name(info.kind)
            for answer in snapshots
            for info in answer.info
        },
        leases=frozenset(lease.id for lease in leases),
        tasks={one.id: task_types_pb2.Status.Name(one.status) for one in tasks.tasks},
    )


async def _all(session: Session, path: str, request: Message, answer: type[A]) -> list[A]:
    async with session.stream(path, answer) as call:
        await call.send(request)
        await call.end()
        return [one async for one in call]


async def collect(session: Session) -> None:
    """Have garbage collected, also from the disk."""
    await session.call(
        "Leases/Create", leases_pb2.CreateRequest(id="collect"), leases_pb2.CreateResponse
    )
    await session.call("Leases/Delete", leases_pb2.DeleteRequest(id="collect", sync=True), Empty)
    request = snapshots_pb2.CleanupRequest(snapshotter=SNAPSHOTTER)
    await session.call("Snapshots/Cleanup", request, Empty)


async def replay(session: Session) -> Told:
    """Add up the events of this namespace from the beginning."""
    last = (await session.info()).sequence
    told = Told()
    if not last:
        return told
    async with session.stream("admin/Events", admin_pb2.EventsResponse) as call:
        await call.send(admin_pb2.EventsRequest(since=0))
        await call.end()
        expected = 1
        async for event in call:
            first = event.lost_from or event.sequence
            if first != expected:
                told.wrong.append(f"event {expected} is missing, {first} follows")
            expected = event.sequence + 1
            if event.envelope.namespace == session.namespace:
                _add(told, event)
            if event.sequence >= last:
                break
    return told


def _add(told: Told, event: admin_pb2.EventsResponse) -> None:
    topic, body = event.envelope.topic, event.envelope.event
    told.topics.append(topic)

    def read(kind: type[A]) -> A:
        message = kind()
        message.ParseFromString(body.value)
        return message

    def put(names: set[str], name: str) -> None:
        if name in names:
            told.wrong.append(f"{topic} {name}: told twice")
        names.add(name)

    def take(names: set[str], name: str) -> None:
        if name not in names:
            told.wrong.append(f"{topic} {name}: was not there")
        names.discard(name)

    match topic:
        case "/containers/create":
            put(told.containers, read(events_pb2.ContainerCreate).id)
        case "/containers/delete":
            take(told.containers, read(events_pb2.ContainerDelete).id)
        case "/images/create":
            put(told.images, read(images_pb2.ImageCreate).name)
        case "/images/delete":
            take(told.images, read(images_pb2.ImageDelete).name)
        case "/snapshot/prepare":
            put(told.snapshots, read(events_pb2.SnapshotPrepare).key)
        case "/snapshot/commit":
            commit = read(events_pb2.SnapshotCommit)
            take(told.snapshots, commit.key)
            put(told.snapshots, commit.name)
        case "/snapshot/remove":
            take(told.snapshots, read(events_pb2.SnapshotRemove).key)
        case "/tasks/create":
            id = read(events_pb2.TaskCreate).container_id
            _step(told, id, topic, "", "CREATED")
            # A new life of that name, in which a pid may come again.
            told.exits = {key: count for key, count in told.exits.items() if key[0] != id}
        case "/tasks/start":
            _step(told, read(events_pb2.TaskStart).container_id, topic, "CREATED", "RUNNING")
        case "/tasks/exit":
            ended = read(events_pb2.TaskExit)
            key = (ended.container_id, ended.id, ended.pid)
            told.exits[key] = told.exits.get(key, 0) + 1
            if told.exits[key] > 1:
                told.wrong.append(f"exit of {key} was told twice")
            if ended.id == ended.container_id:
                _step(told, ended.container_id, topic, "RUNNING CREATED", "STOPPED")
        case "/tasks/delete":
            gone = read(events_pb2.TaskDelete)
            if gone.id in ("", gone.container_id):
                _step(told, gone.container_id, topic, "STOPPED CREATED", "")
        case _:
            pass


def _step(told: Told, name: str, topic: str, before: str, after: str) -> None:
    state = told.tasks.pop(name, "")
    if state not in before.split() and state != before:
        told.wrong.append(f"{topic} {name}: the events before left it {state or 'absent'}")
    if after:
        told.tasks[name] = after


def strays(house: House, view: View, told: Told) -> list[str]:
    """What lies on the disk or in the kernel without a record, and events that tell otherwise."""
    return [*told.wrong, *untrue(view, told), *_left(house, view)]


def untrue(view: View, told: Told) -> Iterator[str]:
    """Where the records and what the events add up to do not agree."""
    pairs: Sequence[tuple[str, set[str], set[str]]] = (
        ("container", set(view.containers), told.containers),
        ("image", set(view.images), told.images),
        (
            "snapshot",
            {key for key, kind in view.snapshots.items() if kind != "VIEW"},
            told.snapshots,
        ),
        ("task", set(view.tasks), set(told.tasks)),
    )
    for noun, have, heard in pairs:
        for name in sorted(have - heard):
            yield f"{noun} {name} is there, no event tells of it"
        for name in sorted(heard - have):
            yield f"{noun} {name} is gone or never was, the events say it is there"
    for name, status in view.tasks.items():
        if name in told.tasks and told.tasks[name] != status:
            yield f"task {name} is {status}, the events say {told.tasks[name]}"


def _left(house: House, view: View) -> Iterator[str]:
    blobs = {f"sha256:{name}" for name in _names(house.root / "content/blobs/sha256")}
    yield from (f"blob {name} has no record" for name in sorted(blobs - view.content))
    yield from (f"blob {name} has no file" for name in sorted(view.content - blobs))
    ingests = _names(house.root / "content/ingest")
    # An ingest to which nothing was written yet may have its record alone.
    if len(ingests) > len(view.ingests):
        yield f"{len(ingests)} ingest directories, {len(view.ingests)} ingests"
    directories = _names(house.root / SNAPSHOTTER / "snapshots")
    if len(directories) != len(view.snapshots):
        yield f"{len(directories)} snapshot directories, {len(view.snapshots)} snapshots"
    bundles = {
        bundle
        for namespace in _names(house.state / "tasks")
        for bundle in _names(house.state / "tasks" / namespace)
    }
    yield from (f"bundle {name} has no task" for name in sorted(bundles - set(view.tasks)))
    yield from (f"task {name} has no bundle" for name in sorted(set(view.tasks) - bundles))
    for target in house.mounts():
        if target != str(house.state / "vault/ns"):  # where the kernel keeps things: the daemon's
            yield f"mount {target}"
    for folder in house.cgroups():
        if folder.name not in view.tasks:
            yield f"cgroup {folder}"
    shims = house.named("holdfast-shim")
    if len(shims) > len(view.tasks):
        yield f"{len(shims)} shims, {len(view.tasks)} tasks"


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()
