"""Who makes a directory of a layer and a layer of a directory: ours, and other processes'.

    asked for a media type --> those that are to be asked first for it
                           --> our own
                           --> all others, in order

Whoever answers Unimplemented has done nothing and leaves it to the next; any other answer stands.
When nobody can do it, our own refusal is told.

A differ of another process is given mounts, which it reaches by their paths, and a descriptor: it
reads the blob from a content store of its choice. What it makes of a directory must be in ours
afterwards, or be had from a source of it (`sourcedcontent.py`).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from ..actors.errors import FailedPrecondition, Unimplemented
from .compression import plain_pieces
from .containers import Opaque
from .content import ContentStore
from .descriptor import OCI_LAYER, OCI_LAYER_GZIP, Descriptor
from .differ import COMPRESSIONS, make_layer
from .digest import Digest, digest_from, new_hash, parse_digest
from .labels import Labels
from .mounts import Mount
from .unpack import UNCOMPRESSED
from .workers import APPLY_WITHIN_S, Workers

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How the changes between two views are to be packed; as `make_layer` takes it."""

    media_type: str = ""
    ref: str = ""
    labels: Labels = field(default_factory=dict[str, str])
    epoch_ns: int | None = None


class FarDiffer(Protocol):
    """Another process's. Each call has a deadline of its own."""

    name: str
    media_types: Sequence[str]
    """For these it is asked before ours."""

    async def apply(
        self,
        namespace: str,
        layer: Descriptor,
        mounts: Sequence[Mount],
        payloads: Mapping[str, Opaque],
        *,
        sync: bool,
    ) -> Descriptor:
        """As `Differs.apply`."""
        ...

    async def diff(
        self, namespace: str, lower: Sequence[Mount], upper: Sequence[Mount], wanted: Wanted
    ) -> Descriptor:
        """As `Differs.diff`."""
        ...


class Differs:
    """The verbs."""

    def __init__(
        self, content: ContentStore, workers: Workers, others: Sequence[FarDiffer] = ()
    ) -> None:
        self._content = content
        self._workers = workers
        self._others = others

    async def apply(
        self,
        namespace: str,
        layer: Descriptor,
        mounts: Sequence[Mount],
        *,
        payloads: Mapping[str, Opaque] | None = None,
        sync: bool = True,
    ) -> Descriptor:
        """Apply a layer's blob onto mounts; the descriptor of the uncompressed layer. Durable on
        return, when `sync` says so. `payloads` are for stream processors, of which we have none.
        """
        told = payloads or {}
        return await self._first(
            layer.media_type,
            lambda: self._apply(namespace, layer, mounts, told, sync=sync),
            lambda other: other.apply(namespace, layer, mounts, told, sync=sync),
        )

    async def diff(
        self,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        wanted: Wanted,
        *,
        lease: str = "",
    ) -> Descriptor:
        """Pack the changes from `lower` to `upper`; the layer's descriptor. The lease holds it."""
        return await self._first(
            wanted.media_type or OCI_LAYER_GZIP,
            lambda: make_layer(
                self._content,
                self._workers,
                namespace,
                lower,
                upper,
                media_type=wanted.media_type,
                ref=wanted.ref,
                labels=wanted.labels,
                epoch_ns=wanted.epoch_ns,
                lease=lease,
            ),
            lambda other: self._diff_there(other, namespace, lower, upper, wanted, lease),
        )

    async def _first(
        self,
        media_type: str,
        own: Callable[[], Awaitable[Answer]],
        ask: Callable[[FarDiffer], Awaitable[Answer]],
    ) -> Answer:
        """The first answer that is not Unimplemented."""
        for other in self._others:
            if media_type in other.media_types:
                try:
                    return await ask(other)
                except Unimplemented:
                    continue
        try:
            return await own()
        except Unimplemented:
            for other in self._others:
                if media_type not in other.media_types:
                    try:
                        return await ask(other)
                    except Unimplemented:
                        continue
            raise

    async def _apply(
        self,
        namespace: str,
        layer: Descriptor,
        mounts: Sequence[Mount],
        payloads: Mapping[str, Opaque],
        *,
        sync: bool,
    ) -> Descriptor:
        if payloads:
            kinds = ", ".join(sorted(payloads))
            raise Unimplemented(f"payloads for stream processors ({kinds[:200]}): not implemented")
        async with await self._content.open_blob(namespace, layer.digest) as blob:
            applied = await self._workers.apply(blob.path, layer.media_type, mounts, sync=sync)
        return Descriptor(
            media_type=OCI_LAYER, digest=parse_digest(applied.diff_id), size=applied.size_bytes
        )

    async def _diff_there(
        self,
        other: FarDiffer,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        wanted: Wanted,
        lease: str,
    ) -> Descriptor:
        made = await other.diff(namespace, lower, upper, wanted)
        content = self._content
        found = await content.obtain(namespace, made.digest, lease=lease)
        if not found or content.info(namespace, made.digest).size != made.size:
            raise FailedPrecondition(
                f"proxy plugin {other.name} has made {made.digest} of {made.size} bytes,"
                " which is not in the content store: failed precondition"
            )
        if lease:
            await content.hold(namespace, made.digest, lease)
        # What it has told of the blob, it may have told its own store.
        known = content.info(namespace, made.digest).labels
        labels = {key: value for key, value in wanted.labels.items() if known.get(key) != value}
        if COMPRESSIONS.get(made.media_type) and UNCOMPRESSED not in known:
            labels[UNCOMPRESSED] = await self._diff_id(namespace, made.digest)
        if labels:
            paths = [f"labels.{key}" for key in labels]
            await content.update(namespace, made.digest, labels, paths)
        return made

    async def _diff_id(self, namespace: str, digest: str) -> Digest:
        """The digest of a layer's plain bytes."""

        def hashed(path: Path) -> Digest:
            hash_ = new_hash()
            with path.open("rb") as packed:
                for piece in plain_pieces(packed):
                    trio.from_thread.check_cancelled()
                    hash_.update(piece)
            return digest_from(hash_)

        async with await self._content.open_blob(namespace, digest) as blob:
            with trio.fail_after(APPLY_WITHIN_S):
                return await trio.to_thread.run_sync(hashed, blob.path)
