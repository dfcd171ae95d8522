"""Launching: a container record made from an image and a few wishes.

    name -> image -> unpacked layers -> a snapshot of its own -> OCI spec -> container record

The task that runs it is the caller's to create. What fails half-way leaves nothing: the snapshot
of a container that did not come to be is removed.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from ..actors.errors import InvalidArgument, Refusal
from ..storage.containers import Container, Containers, Opaque, Runtime
from ..storage.image_config import ImageConfig, offered_labels
from ..storage.image_keeper import ImageKeeper
from ..storage.images import Images
from ..storage.leases import Leases
from ..storage.reference import normalize
from ..storage.snapshotter import Mount, Snapshotter
from .spec import BindMount, User, Wishes, image_args, make_spec, merge_env, spec_bytes
from .users import PasswordFiles, resolve_user

SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
RUNTIME = "io.containerd.runc.v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the caller wants of a container. What is left out is the image's or the default."""

    image: str
    name: str = ""
    args: Sequence[str] = ()
    env: Sequence[str] = ()
    cwd: str = ""
    user: str = ""
    terminal: bool = False
    hostname: str = ""
    read_only_root: bool = False
    binds: Sequence[BindMount] = ()
    tmpfs: Sequence[str] = ()
    host_network: bool = False
    memory_limit_bytes: int = 0
    cpus: float = 0.0
    pids_limit: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    snapshotter: str = ""


class Launcher:
    """Makes containers from images."""

    def __init__(
        self,
        images: Images,
        containers: Containers,
        leases: Leases,
        find_snapshotter: Callable[[str], Snapshotter],
        image_keeper: ImageKeeper,
        files: PasswordFiles,
    ) -> None:
        self._images = images
        self._containers = containers
        self._leases = leases
        self._find_snapshotter = find_snapshotter
        self._image_keeper = image_keeper
        self._files = files

    async def create(self, namespace: str, wanted: Wanted) -> Container:
        """The new container's record. Refused when its name is taken or its image unknown."""
        name = wanted.name or uuid.uuid4().hex[:12]
        image_name = normalize(wanted.image)
        image = self._images.get(namespace, image_name)
        snapshotter = self._find_snapshotter(wanted.snapshotter)
        unpacked = await self._image_keeper.unpack(namespace, image, snapshotter)
        # Until the record refers to it, the lease holds the snapshot.
        async with self._leases.held(namespace) as lease:
            parent = unpacked.chain_id or ""
            mounts = await snapshotter.prepare(namespace, name, parent, lease=lease)
            try:
                wishes = await self._wishes(wanted, unpacked.config, mounts)
                spec = spec_bytes(make_spec(namespace, name, wishes))
                container = Container(
                    id=name,
                    runtime=Runtime(name=RUNTIME),
                    spec=Opaque(type_url=SPEC_URL, value=spec),
                    labels={**offered_labels(unpacked.config), **wanted.labels},
                    image=image_name,
                    snapshotter=snapshotter.name,
                    snapshot_key=name,
                )
                return await self._containers.create(namespace, container)
            except BaseException:
                with trio.CancelScope(shield=True):
                    try:
                        await snapshotter.remove(namespace, name)
                    except Refusal:
                        pass  # the first failure is what the caller is told
                raise

    async def _wishes(self, wanted: Wanted, config: ImageConfig, mounts: Sequence[Mount]) -> Wishes:
        user = await self._user(wanted.user or config.user, mounts)
        if wanted.memory_limit_bytes < 0 or wanted.cpus < 0 or wanted.pids_limit < 0:
            raise InvalidArgument("a limit must not be below zero")
        # A caller's command replaces the image's; its entrypoint stays.
        return Wishes(
            args=image_args(config.entrypoint, config.cmd, wanted.args),
            env=merge_env(config.env, wanted.env),
            cwd=wanted.cwd or config.working_dir or "/",
            user=user,
            terminal=wanted.terminal,
            hostname=wanted.hostname,
            read_only_root=wanted.read_only_root,
            binds=wanted.binds,
            tmpfs=wanted.tmpfs,
            host_network=wanted.host_network,
            memory_limit_bytes=wanted.memory_limit_bytes or None,
            cpus=wanted.cpus or None,
            pids_limit=wanted.pids_limit or None,
        )

    async def _user(self, text: str, mounts: Sequence[Mount]) -> User:
        if not text:
            return User()
        return resolve_user(text, await self._files(mounts))
