"""Transfers: images from one place to another, each move one job under one lease.

    stream   -> image store      an archive is taken in
    image store -> stream        an archive is given out
    image store -> image store   further names for an image
    registry -> image store      pull
    image store -> registry      push

An image store as destination says how what arrives is named, and for which platforms it is
unpacked. `Report` is told how far it is, in containerd's words.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from ..actors.errors import AlreadyExists, NotFound, Unimplemented
from .archive import image_name
from .content import ContentStore
from .descriptor import Descriptor, read_index
from .differs import Differs
from .exporter import export_archive
from .images import Image, Images
from .importer import Source, import_archive
from .leases import Leases
from .mounts import Mount
from .platform import Platform, host
from .registry.limits import PullLimits
from .snapshotter import Snapshotter
from .unpack import Apply, Arrived, unpack

if TYPE_CHECKING:
    from .registry.auth import AskCredentials
    from .registry.client import Registry
    from .registry.fetches import Fetches, Spawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A further name: whole, or a prefix of what the archive's annotations say."""

    name: str
    is_prefix: bool = False
    allow_overwrite: bool = False
    add_digest: bool = False
    skip_named_digest: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpack:
    """A platform that an image is unpacked for, and the snapshotter that takes it."""

    platform: Platform
    snapshotter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStore:
    """Images by name: as a source the ones that are named, as a destination how to name them."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    platforms: Sequence[Platform] = ()
    all_metadata: bool = False
    manifests_max: int = 0
    references: Sequence[Reference] = ()
    unpacks: Sequence[Unpack] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What goes into an archive."""

    platforms: Sequence[Platform] = ()
    all_platforms: bool = False
    docker_manifest: bool = True
    distributable_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far something is: `progress` of `total` bytes, where that is known."""

    event: str
    name: str = ""
    parents: Sequence[str] = ()
    progress: int = 0
    total: int = 0
    descriptor: Descriptor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryPlace:
    """An image in a registry, and how the registry is to be spoken to."""

    reference: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    hosts: Path | None = None
    scheme: str = ""
    bytes_per_s: int = 0
    """What a pull may bring at most; 0: what the settings say."""


Report = Callable[[Progress], Awaitable[None]]
Verify = Callable[[str, Descriptor], Awaitable[None]]
"""Refuses an image that is about to be pulled, by its reference: `Verifiers.verify`."""


class Transfers:
    """The verbs. `snapshotter` finds one by its name; `registry_hosts` are the folders that tell
    of registries where a place names none, separated by colons."""

    def __init__(
        self,
        content: ContentStore,
        images: Images,
        leases: Leases,
        differs: Differs,
        snapshotter: Callable[[str], Snapshotter],
        registry_hosts: str = "",
        *,
        verify: Verify,
        limits: PullLimits | None = None,
        spawn_fetch: "Spawn | None" = None,
    ) -> None:
        """`verify` is asked before anything of an image is fetched. `spawn_fetch` starts a fetch's
        actor, under a supervisor if the caller has one."""
        self._verify = verify
        self.content = content
        self._limits = limits or PullLimits()
        self._spawn_fetch = spawn_fetch
        # Who unpacks what at the moment; who wants the same finds it done.
        self._unpacking: dict[tuple[str, str, str], trio.Lock] = {}
        self._images = images
        self._leases = leases
        self._differs = differs
        self._snapshotter = snapshotter
        self._registry_hosts = registry_hosts

    async def take_in(
        self,
        namespace: str,
        source: Source,
        destination: ImageStore,
        report: Report,
        *,
        lease: str = "",
    ) -> Sequence[Image]:
        """Bring in an archive; `source` is read in a thread. Images without a name stay without
        a record."""
        self._check(destination)
        async with self._under(namespace, lease) as lease:
            await report(Progress(event="Importing"))
            found = await import_archive(self.content, namespace, source, lease=lease)
            raw = await self.content.read_all(namespace, found.index.digest)
            named = [(name, found.index) for name in names_of(destination, found.index)]
            for target in read_index(raw, "index.json"):
                names = annotated_names_of(destination, target)
                named += [(name, target) for name in names]
            images = await self._store(namespace, named, destination, report, lease)
            await report(Progress(event="Completed import"))
            return images

    async def give_out(
        self,
        namespace: str,
        source: ImageStore,
        export: Export,
        write: Callable[[bytes], object],
        report: Report,
    ) -> None:
        """Write images as one archive; `write` is called in a thread."""
        platforms = () if export.all_platforms else export.platforms or (host(),)
        images = self._look_up(namespace, source)
        await report(Progress(event="Exporting"))
        for image in images:
            await report(Progress(event="exporting", name=image.name, descriptor=image.target))
        await export_archive(
            self.content,
            namespace,
            [(image.name, image.target) for image in images],
            write,
            platforms=platforms,
            docker_manifest=export.docker_manifest,
            distributable_only=export.distributable_only,
        )
        await report(Progress(event="Completed export"))

    async def tag(
        self,
        namespace: str,
        source: ImageStore,
        destination: ImageStore,
        report: Report,
        *,
        lease: str = "",
    ) -> Sequence[Image]:
        """Give an image the destination's names too."""
        self._check(destination)
        target = self._images.get(namespace, source.name).target
        async with self._under(namespace, lease) as lease:
            named = [(name, target) for name in names_of(destination, target)]
            return await self._store(namespace, named, destination, report, lease)

    async def pull(
        self,
        namespace: str,
        source: RegistryPlace,
        destination: ImageStore,
        ask: "AskCredentials",
        report: Report,
        *,
        lease: str = "",
    ) -> Sequence[Image]:
        """Bring an image in from a registry, for the destination's platforms or all there are."""
        from .registry.download import Source as Server
        from .registry.pull import Pull

        self._check(destination)
        fetches = self._fetches
        stall_s, given = self._limits.stall_s, lease
        async with (
            self._registry(source, ask, silent_within_s=stall_s) as registry,
            self._under(namespace, lease) as lease,
        ):
            await report(Progress(event=f"Resolving from {source.reference}"))
            server = Server(registry=registry, meters=fetches.meters(namespace, source.bytes_per_s))
            # The caller's lease is the caller's affair, also when the pull fails.
            keeper = None if given else self._leases
            pulling = Pull(
                self.content, fetches, namespace, server, destination, report, lease, keeper
            )
            async with pulling.begun(partial(self._verify, source.reference)):
                target = pulling.target
                named = [(name, target) for name in names_of(destination, target)]
                if not named:
                    raise NotFound("no image name found: not found")
                await pulling.documents()
                arrived = pulling.arrived
                await self._unpack(namespace, [target], destination, report, lease, arrived)
            images = await self._record_all(namespace, named, destination, report)
            await pulling.done()
        await report(Progress(event=f"Completed pull from {source.reference}"))
        return images

    async def push(
        self,
        namespace: str,
        source: ImageStore,
        destination: RegistryPlace,
        ask: "AskCredentials",
        report: Report,
    ) -> None:
        """Bring an image to a registry, for the source's platforms or all that it lists."""
        from .registry.push import push

        target = self._images.get(namespace, source.name).target
        async with self._registry(destination, ask) as registry:
            await report(Progress(event=f"Pushing to {destination.reference}"))
            platforms = source.platforms
            target = await push(self.content, namespace, registry, target, platforms, report)
        await report(
            Progress(event=f"Completed push to {destination.reference}", descriptor=target)
        )

    # -- inside

    @cached_property
    def _fetches(self) -> "Fetches":
        from .registry.fetch import FetchActor
        from .registry.fetches import Fetches

        return Fetches(self.content, self._limits, self._spawn_fetch or FetchActor.spawn)

    @asynccontextmanager
    async def _registry(
        self, place: RegistryPlace, ask: "AskCredentials", *, silent_within_s: float | None = None
    ) -> AsyncGenerator["Registry"]:
        # Imported when the first registry is asked for: the daemon should be up at once.
        from .registry.client import open_registry
        from .registry.hosts import hosts_of, parse_remote, split_folders

        remote = parse_remote(place.reference)
        folders = split_folders(str(place.hosts or self._registry_hosts))
        hosts = await trio.to_thread.run_sync(hosts_of, remote, folders, place.scheme)
        if silent_within_s is not None:
            hosts = [
                replace(host, silent_within_s=host.silent_within_s or silent_within_s)
                for host in hosts
            ]
        async with open_registry(remote, hosts, ask, place.headers) as registry:
            yield registry

    @asynccontextmanager
    async def _under(self, namespace: str, lease: str) -> AsyncGenerator[str]:
        """The caller's lease, or one for as long as this takes."""
        if lease:
            yield lease
            return
        async with self._leases.held(namespace) as own:
            yield own

    def _check(self, destination: ImageStore) -> None:
        # Before anything is moved, not after.
        for wanted in destination.unpacks:
            self._snapshotter(wanted.snapshotter)

    def _look_up(self, namespace: str, source: ImageStore) -> Sequence[Image]:
        names = [source.name] if source.name else []
        for reference in source.references:
            if reference.is_prefix:
                raise Unimplemented("prefix lookup on export not implemented: not implemented")
            names.append(reference.name)
        return [self._images.get(namespace, name) for name in names]

    async def _store(
        self,
        namespace: str,
        named: Sequence[tuple[str, Descriptor]],
        destination: ImageStore,
        report: Report,
        lease: str,
    ) -> Sequence[Image]:
        """Unpack what arrived, then let its names tell of it."""
        if not named:
            raise NotFound("no image name found: not found")
        targets = {target.digest: target for _, target in named}
        await self._unpack(namespace, list(targets.values()), destination, report, lease)
        return await self._record_all(namespace, named, destination, report)

    async def _unpack(
        self,
        namespace: str,
        targets: Sequence[Descriptor],
        destination: ImageStore,
        report: Report,
        lease: str,
        arrived: Arrived | None = None,
    ) -> None:
        for target in targets:
            for wanted in destination.unpacks:
                await report(Progress(event="extracting", name=target.digest, descriptor=target))
                snapshotter = self._snapshotter(wanted.snapshotter)
                key = (namespace, snapshotter.name, target.digest)
                async with self._alone(key):
                    await unpack(
                        self.content,
                        snapshotter,
                        telling(self._differs.apply, report),
                        namespace,
                        target,
                        wanted.platform,
                        lease=lease,
                        arrived=arrived,
                    )

    @asynccontextmanager
    async def _alone(self, key: tuple[str, str, str]) -> AsyncGenerator[None]:
        """One after another: whoever comes second finds the snapshots of the first."""
        lock = self._unpacking.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and self._unpacking.get(key) is lock:
                del self._unpacking[key]

    async def _record_all(
        self,
        namespace: str,
        named: Sequence[tuple[str, Descriptor]],
        destination: ImageStore,
        report: Report,
    ) -> Sequence[Image]:
        images: list[Image] = []
        for name, target in named:
            image = Image(name=name, target=target, labels=destination.labels)
            images.append(await self._record(namespace, image))
            await report(Progress(event="saved", name=name, descriptor=target))
        return images

    async def _record(self, namespace: str, image: Image) -> Image:
        while True:
            try:
                return await self._images.create(namespace, image)
            except AlreadyExists:
                pass
            try:
                return await self._images.update(namespace, image)
            except NotFound:
                continue  # it was removed meanwhile


def telling(apply: Apply, report: Report) -> Apply:
    """The same, which says of each layer when it is begun and when it is done."""

    async def applied(namespace: str, layer: Descriptor, mounts: Sequence[Mount], /) -> Descriptor:
        now = Progress(
            event="extracting", name=f"layer-{layer.digest}", total=layer.size, descriptor=layer
        )
        await report(now)
        found = await apply(namespace, layer, mounts)
        await report(replace(now, event="extracted", progress=layer.size))
        return found

    return applied


def names_of(destination: ImageStore, target: Descriptor) -> Sequence[str]:
    """What an image is called of which the source says nothing."""
    names = [destination.name] if destination.name else []
    for reference in destination.references:
        if not reference.is_prefix:
            digest = f"@{target.digest}" if reference.add_digest else ""
            names.append(reference.name + digest)
    return names


def annotated_names_of(destination: ImageStore, target: Descriptor) -> Sequence[str]:
    """What an image of an archive is called, by its annotations and the destination's prefixes."""
    names: list[str] = []
    for reference in destination.references:
        if not reference.is_prefix:
            continue
        strict = bool(reference.name) and not reference.allow_overwrite
        name = image_name(target.annotations, reference.name, strict=strict)
        if name:
            names.append(name)
        if reference.add_digest and not (name and reference.skip_named_digest):
            names.append(f"{reference.name}@{target.digest}")
    return names
