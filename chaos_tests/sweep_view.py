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

from holdfast.actors.errors import InvalidArgument, NotFound
from holdfast.api.cli.session import Session
from holdfast.api.proto import events_pb2, task_types_pb2
from holdfast.api.proto.services import (
    admin_pb2,
    containers_pb2,
    content_pb2,
    images_pb2,
    leases_pb2,
    mounts_pb2,
    namespaces_pb2,
    sandbox_pb2,
    snapshots_pb2,
    tasks_pb2,
)
from holdfast.runtime.foreign import NOTE
from holdfast.runtime.records import sandbox_task

from .sweep_daemon import House

A = TypeVar("A", bound=Message)

SNAPSHOTTER = "overlayfs"
THEIRS = "theirs"
"""The snapshotter of a proxy plugin."""
POD = "pod"
SANDBOX = "/containerd.services.sandbox.v1."


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
    sandboxes: frozenset[str] = frozenset()
    """The records."""
    pods: Mapping[str, str] = field(default_factory=dict[str, str])
    """Live sandboxes: id -> status of the process."""
    mounts: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """Activations: name -> how many are active, how many are left to the client."""
    theirs: Mapping[str, str] = field(default_factory=dict[str, str])
    """Snapshots of the proxy plugin: key -> kind."""


@dataclass(slots=True, kw_only=True)
class Told:
    """What the events add up to, and what is wrong with their order."""

    containers: set[str] = field(default_factory=set[str])
    images: set[str] = field(default_factory=set[str])
    snapshots: set[str] = field(default_factory=set[str])
    ever: set[str] = field(default_factory=set[str])
    """Every snapshot of which there was an event."""
    tasks: dict[str, str] = field(default_factory=dict[str, str])
    pods: dict[str, str] = field(default_factory=dict[str, str])
    """As far as events tell: a shutdown is not told."""
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
    activations = await _all(
        session, "Mounts/List", mounts_pb2.ListRequest(), mounts_pb2.ListMessage
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
        snapshots=await snapshots_of(session, SNAPSHOTTER),
        theirs=await snapshots_of(session, THEIRS),
        leases=frozenset(lease.id for lease in leases),
        tasks={one.id: task_types_pb2.Status.Name(one.status) for one in tasks.tasks},
        sandboxes=await _sandboxes(session),
        pods=await _pods(session),
        mounts={one.info.name: (len(one.info.active), len(one.info.system)) for one in activations},
    )


async def snapshots_of(session: Session, snapshotter: str) -> Mapping[str, str]:
    """Key -> kind."""
    request = snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter)
    try:
        answers = await _all(
            session, "Snapshots/List", request, snapshots_pb2.ListSnapshotsResponse
        )
    except InvalidArgument:
        return {}  # a daemon without it
    return {
        info.name: snapshots_pb2.Kind.Name(info.kind) for answer in answers for info in answer.info
    }


async def _sandboxes(session: Session) -> frozenset[str]:
    answer = await session.channel.unary(
        f"{SANDBOX}Store/List",
        sandbox_pb2.StoreListRequest(),
        sandbox_pb2.StoreListResponse,
        metadata=session.metadata,
    )
    return frozenset(one.sandbox_id for one in answer.list)


async def _pods(session: Session) -> Mapping[str, str]:
    """There is no list of them: the one that the operations have is asked for."""
    request = sandbox_pb2.ControllerStatusRequest(sandbox_id=POD, sandboxer="shim", verbose=True)
    try:
        answer = await session.channel.unary(
            f"{SANDBOX}Controller/Status",
            request,
            sandbox_pb2.ControllerStatusResponse,
            metadata=session.metadata,
        )
    except NotFound:
        return {}
    return {POD: answer.info["task"]}


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
            told.ever |= told.snapshots
        case "/snapshot/commit":
            commit = read(events_pb2.SnapshotCommit)
            take(told.snapshots, commit.key)
            put(told.snapshots, commit.name)
            told.ever.add(commit.name)
        case "/snapshot/remove":
            # Of a view, too; and that one was made is not told.
            if (gone_key := read(events_pb2.SnapshotRemove).key) in told.ever:
                take(told.snapshots, gone_key)
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
        case "/sandboxes/create":
            pod = read(events_pb2.SandboxCreate).sandbox_id
            if told.pods.get(pod) == "STOPPED":  # that it was shut down is not told
                del told.pods[pod]
            _step(told, pod, topic, "", "CREATED", told.pods)
        case "/sandboxes/start":
            pod = read(events_pb2.SandboxStart).sandbox_id
            _step(told, pod, topic, "CREATED", "RUNNING", told.pods)
        case "/sandboxes/exit":
            pod = read(events_pb2.SandboxExit).sandbox_id
            _step(told, pod, topic, "RUNNING CREATED", "STOPPED", told.pods)
        case _:
            pass


def _step(
    told: Told,
    name: str,
    topic: str,
    before: str,
    after: str,
    states: dict[str, str] | None = None,
) -> None:
    states = told.tasks if states is None else states
    state = states.pop(name, "")
    if state not in before.split() and state != before:
        told.wrong.append(f"{topic} {name}: the events before left it {state or 'absent'}")
    if after:
        states[name] = after


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
            {
                key
                for key, kind in (*view.snapshots.items(), *view.theirs.items())
                if kind != "VIEW"
            },
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
    for name, status in view.pods.items():
        heard_status = told.pods.get(name, "absent")
        if heard_status != status:
            yield f"sandbox {name} is {status}, the events say {heard_status}"


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
    tasks = {*view.tasks, *map(sandbox_task, view.pods)}
    yield from (f"bundle {name} has no task" for name in sorted(bundles - tasks))
    yield from (f"task {name} has no bundle" for name in sorted(tasks - bundles))
    yield from _mounted(house, view)
    for folder in house.cgroups():
        if folder.name not in tasks:
            yield f"cgroup {folder}"
    shims = len(house.named("holdfast-shim")) + len(house.named("containerd-shim"))
    if shims > len(tasks):
        yield f"{shims} shims, {len(tasks)} tasks"
    if not tasks and (loggers := house.named("holdfast-log")):
        yield f"loggers {loggers}"


def _mounted(house: House, view: View) -> Iterator[str]:
    """What stands, and no activation tells of it."""
    home = house.state / "mounts"
    directories = _names(home)
    if len(directories) != len(view.mounts):
        yield f"{len(directories)} directories of mounts, {len(view.mounts)} activations"
    count = 0
    for target in house.mounts():
        if target == str(house.state / "vault/ns"):
            continue  # where the kernel keeps things: the daemon's
        bundle = Path(target).parent
        if (bundle / NOTE).exists() and bundle.name in view.tasks:
            continue  # such a shim mounts where everybody sees it
        if target.startswith(f"{home}/"):
            count += 1
        else:
            yield f"mount {target}"
    loops = house.loops()
    active = sum(made for made, _ in view.mounts.values())
    # Each of them is a mount, or a device.
    if count + len(loops) != active:
        yield f"{count} mounts and {loops} stand, {active} are active"


def _names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()
