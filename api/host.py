"""The host: everything that runs containers, in one process, opened and closed as a block.

    async with holdfast.open(root="/var/lib/app", state="/run/app") as host:
        await host.import_archive("busybox.tar")
        done = await host.run("busybox", ["echo", "hello"])

It builds the tree and holds the verbs of the rooms below; the daemon is a host that serves its
sockets. Leaving the block ends actors and helper processes in order; containers run on, and the
next host with the same root and state takes them up again.
"""

import os
import shutil
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import structlog
import trio

from ..actors.actor import Actor
from ..actors.errors import NotFound, Refusal
from ..actors.exits import KILL, ActorExited
from ..actors.reference import Ref
from ..actors.system import System
from ..runtime.asking import StartChild
from ..runtime.foreign import Foreign, Wire
from ..runtime.ground import Ground, Limits
from ..runtime.launch import Launcher, Wanted
from ..runtime.processview import Process
from ..runtime.records import task_name
from ..runtime.restartpolicy import STATUS
from ..runtime.restarts import Restarts
from ..runtime.sandboxes import Sandboxes
from ..runtime.shims import spawn_shim
from ..runtime.stdio import Stdio
from ..runtime.taskfaults import TaskFaults
from ..runtime.tasks import Tasks
from ..runtime.users import FILE_BYTES_MAX, Accounts
from ..storage.activations import Activations
from ..storage.collector import Collector, Pace, Reclaim
from ..storage.containers import Container, Containers
from ..storage.content import ContentStore
from ..storage.contentfaults import ContentFaults
from ..storage.differs import Differs
from ..storage.events import EventLog
from ..storage.expiry import stamp_anew
from ..storage.faults import FaultKeeper, Faults
from ..storage.image_keeper import ImageKeeper
from ..storage.images import Images
from ..storage.ingest import IngestActor
from ..storage.leases import Leases
from ..storage.namespaces import Namespaces
from ..storage.registry.limits import PullLimits
from ..storage.sandboxes import SandboxStore
from ..storage.snapshotfaults import SnapshotFaults
from ..storage.snapshotter import Mount, Snapshotter, find_snapshotter
from ..storage.sourcedcontent import SourcedContent
from ..storage.store import Store
from ..storage.workers import Worker, Workers
from ..supervision.report import CrashLog, crash_log
from ..supervision.spec import ChildSpec, Restart, Tree
from ..supervision.supervisor import Supervisor, open_tree
from ..supervision.tree import Node, look
from ..supervision.verbs import start_child, terminate_child
from . import logfiles
from .config import MOUNTS_NAME, Config, load
from .containerd.publish import publish_binary
from .facts import Facts, look_at_host
from .identity import lasting_uuid
from .log import set_up_logging
from .newtask import NewTasks
from .rootlock import root_lock
from .snapshotters import AnySnapshots, open_snapshotters
from .tree import EXECS, FETCHES, INGESTS, TASKS, WORKERS, host_tree
from .treetext import node_to, tree_lines
from .watch import watched_loop

if TYPE_CHECKING:
    from ..storage.transfer import Transfers
    from .proxies.content import ProxiedContent
    from .proxies.diff import ProxiedDiffer

DIRECTORY_MODE = 0o700
DATABASE_NAME = "holdfast.db"
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A container that ran to its end."""

    name: str
    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A container with a task; its output goes to these files."""

    name: str
    pid: int
    stdout: Path
    stderr: Path


Serving = Callable[["Host"], ChildSpec]
"""Makes the child that answers clients of a host."""


@dataclass(kw_only=True)
class Host:
    """An open host. The fields are the rooms' verbs; the methods join them into the usual jobs."""

    config: Config
    uuid: str
    system: System
    store: Store
    events: EventLog
    namespaces: Namespaces
    containers: Containers
    sandbox_store: SandboxStore
    images: Images
    leases: Leases
    content: ContentStore
    differs: Differs
    snapshotters: Mapping[str, AnySnapshots]
    absent: Mapping[str, Refusal]
    """Why a snapshotter that we have a driver for does not work here."""
    activations: Activations
    workers: Workers
    collector: Collector
    faults: Faults
    image_keeper: ImageKeeper
    ground: Ground
    tasks: Tasks
    sandboxes: Sandboxes
    launcher: Launcher
    restarts: ChildSpec
    start_task: StartChild
    start_exec: StartChild
    started_at_ns: int
    root: Ref[Supervisor] | None = field(default=None)

    async def facts(self) -> Facts:
        """The OCI runtime that is used by default, and which cgroups the host has."""
        return await trio.to_thread.run_sync(look_at_host, self.config.oci_runtime)

    @cached_property
    def transfers(self) -> "Transfers":
        """The moves of images."""
        # Imported when the first is asked for: the daemon should be up at once.
        from ..storage.registry.fetch import FetchActor
        from ..storage.transfer import Transfers
        from ..storage.verifiers import Verifiers

        folder = self.config.image_verifier_bin_dir
        verifiers = Verifiers(
            Path(folder) if folder else None,
            programs_max=self.config.image_verifiers_max,
            within_s=self.config.image_verifier_within_s,
        )
        return Transfers(
            self.content,
            self.images,
            self.leases,
            self.differs,
            self.snapshotter,
            self.config.registry_hosts,
            limits=limits_of(self.config),
            spawn_fetch=partial(_spawn, self.system, FETCHES, FetchActor),
            verify=verifiers.verify,
        )

    @property
    def crashes(self) -> CrashLog:
        """The crash reports of every supervisor below."""
        return crash_log(self.system)

    # -- images

    async def import_archive(
        self, path: str | os.PathLike[str], *, namespace: str = DEFAULT_NAMESPACE
    ) -> Sequence[str]:
        """Take in an OCI or Docker archive and unpack it; the names of its images."""
        file = await trio.to_thread.run_sync(partial(Path(path).open, "rb"))
        try:
            images = await self.image_keeper.take_in(namespace, cast("BinaryIO", file))
        finally:
            file.close()
        for image in images:
            await self.image_keeper.unpack(namespace, image, self.snapshotter())
        return [image.name for image in images]

    def snapshotter(self, name: str = "") -> Snapshotter:
        """The snapshotter of that name, or the configured one."""
        return find_snapshotter(self.snapshotters, self.config.snapshotter, name)

    # -- containers

    async def run(
        self,
        image: str,
        args: Sequence[str] = (),
        *,
        namespace: str = DEFAULT_NAMESPACE,
        **wishes: Any,
    ) -> Completed:
        """Run a container to its end and remove it; its exit status and output.

        `wishes` are the fields of `runtime.launch.Wanted`: env, binds, memory_limit_bytes, ...
        """
        started = await self.launch(image, args, namespace=namespace, **wishes)
        try:
            status = await self.wait(started.name, namespace=namespace)
            return Completed(
                name=started.name,
                status=status,
                stdout=await trio.Path(started.stdout).read_bytes(),
                stderr=await trio.Path(started.stderr).read_bytes(),
            )
        finally:
            with trio.CancelScope(shield=True):
                await self.remove(started.name, namespace=namespace, force=True)

    async def launch(
        self,
        image: str,
        args: Sequence[str] = (),
        *,
        namespace: str = DEFAULT_NAMESPACE,
        **wishes: Any,
    ) -> Launched:
        """Start a container in the background; its output goes to files of the host's root."""
        made = await self.create(image, args, namespace=namespace, **wishes)
        try:
            await self.start(made.name, namespace=namespace)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.remove(made.name, namespace=namespace, force=True)
            raise
        return made

    async def create(
        self,
        image: str,
        args: Sequence[str] = (),
        *,
        name: str = "",
        namespace: str = DEFAULT_NAMESPACE,
        **wishes: Any,
    ) -> Launched:
        """A container with its task, created and not started: its namespaces exist, its process
        waits for `start`, and whoever likes may put an interface into its network namespace."""
        wanted = Wanted(name=name or uuid.uuid4().hex[:12], image=image, args=args, **wishes)
        container = await self.launcher.create(namespace, wanted)
        logs = logfiles.folder(self.config.root, namespace, container.id)
        try:
            await trio.to_thread.run_sync(logfiles.prepare, logs)
            stdio = Stdio(stdout=f"file://{logs}/stdout", stderr=f"file://{logs}/stderr")
            snapshots = self.snapshotter(container.snapshotter)
            mounts = await snapshots.mounts(namespace, container.snapshot_key)
            pid = await self.tasks.create(namespace, container.id, mounts, stdio)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.remove(container.id, namespace=namespace, force=True)
            raise
        return Launched(name=container.id, pid=pid, stdout=logs / "stdout", stderr=logs / "stderr")

    async def start(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> int:
        """Let a created container's process run; its pid."""
        return await self.tasks.start(namespace, name)

    async def wait(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> int:
        """Wait for a container's end; its exit status."""
        status, _ = await self.tasks.wait(namespace, name)
        return status

    async def kill(self, name: str, signal: int = 9, *, namespace: str = DEFAULT_NAMESPACE) -> None:
        """Send a signal to a container's first process."""
        await self.tasks.kill(namespace, name, "", signal)

    async def remove(
        self, name: str, *, namespace: str = DEFAULT_NAMESPACE, force: bool = False
    ) -> None:
        """Remove a container with its task, snapshot and output; `force` kills it first."""
        container = self.containers.get(namespace, name)
        try:
            status = self.task(name, namespace=namespace).status
        except NotFound:
            status = "GONE"
        if force or status in ("STOPPED", "GONE"):
            await self._let_go(namespace, container)
        try:
            if force and status not in ("STOPPED", "GONE"):
                try:
                    await self.tasks.kill(namespace, name, "", 9, all=True)
                    await self.tasks.wait(namespace, name)
                except Refusal:
                    pass  # created and never started, or it ended meanwhile
            await self.tasks.delete(namespace, name)
        except NotFound:
            pass  # it has no task
        # The snapshot first: without the record it would be garbage, and the collector faster.
        if container.snapshot_key:
            snapshots = self.snapshotter(container.snapshotter)
            with suppress(NotFound):  # an earlier removal was cut short
                await snapshots.remove(namespace, container.snapshot_key)
        await self.containers.delete(namespace, name)
        logs = logfiles.folder(self.config.root, namespace, name)
        await trio.to_thread.run_sync(partial(shutil.rmtree, logs, ignore_errors=True))

    async def _let_go(self, namespace: str, container: Container) -> None:
        """Bring a container that is about to go back no more."""
        if STATUS in container.labels:
            await self.containers.update(
                namespace, replace(container, labels={}), [f"labels.{STATUS}"]
            )

    def task(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> Process:
        """The container's first process, as it was told last."""
        return self.tasks.get(namespace, name)

    # -- the tree

    def plan(self, serving: Serving | None) -> Tree:
        """The tree of this host, as data."""
        child = serving(self) if serving is not None else None
        return host_tree(
            store=self.store,
            collector=self.collector,
            snapshotters=list(self.snapshotters.values()),
            activations=self.activations,
            ground=self.ground,
            start_task=self.start_task,
            start_exec=self.start_exec,
            restarts=self.restarts,
            serving=child,
            first=partial(self._answering, child),
            tasks_per_shim=self.config.tasks_per_shim,
        )

    async def _answering(self, child: ChildSpec | None) -> None:
        """Wait until clients are answered: a host with many containers serves before it has
        caught up with them."""
        if child is not None and child.name is not None:
            await self.system.wait_for_name(child.name)

    async def close(self) -> None:
        """End the tree in order; whoever does not end in time is killed."""
        assert self.root is not None
        self.root.shutdown()
        with trio.move_on_after(self.config.shutdown_within_s):
            await self.root.wait_exit()
        self.root.exit(KILL)
        await self.workers.close()
        self.tasks.close()
        self.sandboxes.close()

    def tree(self) -> Node:
        """The live tree as data, as it is at this moment."""
        assert self.root is not None
        return look(self.root)

    def tree_text(self) -> str:
        """The live tree, a node a line."""
        return "\n".join(tree_lines(node_to(self.tree())))

    def task_actor(self, name: str, *, namespace: str = DEFAULT_NAMESPACE) -> str:
        """The registered name of a task's actor."""
        return task_name(namespace, name)

    async def kill_actor(self, name: str) -> None:
        """End one actor as a fault would; its supervisor decides what follows."""
        ref = self.system.whereis(name)
        if ref is None:
            raise NotFound(f"actor {name}: not found")
        ref.exit(KILL)
        await ref.wait_exit()


@asynccontextmanager
async def open(
    root: str | os.PathLike[str],
    state: str | os.PathLike[str],
    **settings: Any,
) -> AsyncGenerator[Host]:
    """A host below these two directories, serving no socket. `settings` are Config's fields."""
    if not structlog.is_configured():  # its own default would print on the program's stdout
        set_up_logging("error")
    async with open_host(embedded(Path(root), Path(state), settings)) as host:
        yield host


def embedded(root: Path, state: Path, settings: Mapping[str, Any]) -> Config:
    """The configuration of a host in somebody's program."""
    return replace(load(None, {"root": root.absolute(), "state": state.absolute()}), **settings)


@asynccontextmanager
async def open_host(config: Config, serving: Serving | None = None) -> AsyncGenerator[Host]:
    """A host with this configuration; `serving` adds what answers clients, last in the tree.

    FailedPrecondition when another host uses the same root.
    """
    prepare_directories(config)
    with root_lock(config.root):
        async with (
            watched_loop(),
            System.open(stop_within_s=config.shutdown_within_s) as system,
            Store.open(config.root / DATABASE_NAME, events_kept_max=config.events_kept) as store,
        ):
            host = await build(config, system, store, serves=serving is not None)
            await host.leases.end_jobs()
            await host.content.end_jobs()
            await stamp_anew(store)
            host.root = await open_tree(host.plan(serving))
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fall_with, host.root)
                    yield host
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await host.close()


class HostFailed(Exception):
    """The tree gave up: too much fell in too short a time."""


async def fall_with(root: Ref[Any]) -> None:
    """End the block when the whole tree has ended by itself."""
    reason = await root.wait_exit()
    raise HostFailed(f"the tree ended: {reason}")


async def build(config: Config, system: System, store: Store, *, serves: bool = False) -> Host:
    """The rooms' verbs over one store, before anything runs. `serves`: it will have sockets."""
    workers = Workers(config.workers, spawn=partial(_spawn, system, WORKERS, Worker))
    host_uuid = lasting_uuid(config.root)
    snapshotters = await open_snapshotters(config, store, workers, host_uuid)
    sources, other_differs = _proxied(config)
    content = await (SourcedContent if sources else ContentStore).open(
        config.root / "content",
        store,
        spawn=partial(_spawn, system, INGESTS, IngestActor),
        isolated=config.content_sharing == "isolated",
    )
    if isinstance(content, SourcedContent):
        content.sources = sources
    differs = Differs(content, workers, other_differs)
    images, containers = Images(store), Containers(store)
    leases = Leases(store)
    image_keeper = ImageKeeper(content, images, leases, differs)
    foreign = _foreign(config) if serves else None
    task_faults = TaskFaults(store, config.state, spawn_shim, foreign)
    ground = Ground(
        store=store,
        state=config.state,
        spawn_shim=spawn_shim,
        faults=task_faults,
        oci_runtime=config.oci_runtime,
        limits=Limits(attach_within_s=config.attach_within_s),
        log_binaries=config.log_binaries,
        foreign=foreign,
    )
    start_task = partial(start_child, system.at(TASKS))
    start_exec = partial(start_child, system.at(EXECS))
    activations = Activations(store, workers, config.state / MOUNTS_NAME, [config.root])
    reclaim: dict[str, Reclaim] = {
        "content": content.reclaim,
        "ingest": content.reclaim,
        "mount": activations.reclaim,
    }
    collector = Collector(store, reclaim, pace_of(config))
    tasks = Tasks(ground, containers, start_task, start_exec)
    find_snapshots = partial(find_snapshotter, snapshotters.by_name, config.snapshotter)
    new_tasks = NewTasks(containers, tasks, find_snapshots)
    keepers: list[FaultKeeper] = [task_faults, ContentFaults(content), activations]
    keepers += [SnapshotFaults(snapshots) for snapshots in snapshotters.own]
    return Host(
        config=config,
        uuid=host_uuid,
        system=system,
        store=store,
        events=store.events,
        namespaces=Namespaces(store),
        containers=containers,
        sandbox_store=SandboxStore(store),
        images=images,
        leases=leases,
        content=content,
        differs=differs,
        snapshotters=snapshotters.by_name,
        absent=snapshotters.absent,
        activations=activations,
        workers=workers,
        collector=collector,
        faults=Faults(store, keepers, collector.collect),
        image_keeper=image_keeper,
        ground=ground,
        tasks=tasks,
        sandboxes=Sandboxes(ground, start_task, start_exec),
        launcher=Launcher(
            images,
            containers,
            leases,
            find_snapshots,
            image_keeper,
            partial(_accounts, workers),
        ),
        restarts=ChildSpec(
            "restarts",
            Restarts,
            args=(store, tasks, new_tasks.create, ground.caught_up),
            name="restarts",
        ),
        start_task=start_task,
        start_exec=start_exec,
        started_at_ns=time.time_ns(),
    )


def _proxied(config: Config) -> "tuple[Sequence[ProxiedContent], Sequence[ProxiedDiffer]]":
    """The content stores and differs of other processes."""
    if not config.proxy_plugins:
        return (), ()
    # Few daemons have one, and all of them should be up at once.
    from .proxies.plugins import differs_of, sources_of

    return sources_of(config), differs_of(config)


def _foreign(config: Config) -> Foreign:
    return Foreign(wire=_wire, address=config.address, publish_binary=publish_binary())


def _wire() -> Wire:
    # Few daemons meet such a shim, and all of them should be up at once.
    from .foreignshim import ShimWire

    return ShimWire()


def pace_of(config: Config) -> Pace:
    """How often this host collects garbage."""
    return Pace(
        share_max=config.gc_pause_threshold,
        deletions_max=config.gc_deletion_threshold,
        writes_max=config.gc_mutation_threshold,
        delay_s=config.gc_schedule_delay_s,
        start_delay_s=config.gc_startup_delay_s,
    )


def limits_of(config: Config) -> PullLimits:
    """What the pulls of this host may take."""
    return PullLimits(
        blobs_at_once=config.pull_blobs_at_once,
        ranges_at_once=config.pull_ranges_at_once,
        range_bytes=config.pull_range_bytes,
        stall_s=config.pull_stall_s,
        bytes_per_s=config.pull_bytes_per_s,
        namespace_bytes_per_s=config.pull_namespace_bytes_per_s,
    )


async def _spawn(system: System, supervisor: str, kind: type[Actor], *args: Any) -> Ref[Any]:
    """Start an actor under one of the tree's dynamic supervisors; alone before the tree stands."""
    if system.whereis(supervisor) is None:
        return await kind.spawn(*args)
    spec = ChildSpec(uuid.uuid4().hex[:12], kind, Restart.TEMPORARY, args=args)
    try:
        return await start_child(system.at(supervisor), spec)
    except trio.Cancelled:
        # Nobody would know of it, and it would hold what it has for ever.
        with trio.CancelScope(shield=True), suppress(NotFound, ActorExited):
            await terminate_child(system.at(supervisor), spec.id)
        raise


async def _accounts(workers: Workers, mounts: Sequence[Mount]) -> Accounts:
    files = await workers.read_files(mounts, ["etc/passwd", "etc/group"], FILE_BYTES_MAX)
    return Accounts(passwd=files.get("etc/passwd", b""), group=files.get("etc/group", b""))


def prepare_directories(config: Config) -> None:
    """Make root and state, for root's eyes alone; also where they were wider before."""
    for path in (config.root, config.state):
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        path.chmod(DIRECTORY_MODE)
