"""The differ: what has changed between two views of a filesystem, as a layer in the content store.

lower, upper mounts --worker: packer.py--> pipe --> ingest --> blob
"""

import os
from collections.abc import Mapping, Sequence

import trio

from ..actors.errors import AlreadyExists, NotFound, Unimplemented
from .content import ContentStore
from .descriptor import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, Descriptor
from .digest import parse_digest
from .ingest import Ingest
from .mounts import Mount
from .unpack import UNCOMPRESSED
from .workers import Workers

COMPRESSIONS: Mapping[str, str] = {
    OCI_LAYER: "",
    OCI_LAYER_GZIP: "gzip",
    OCI_LAYER_ZSTD: "zstd",
}


async def make_layer(
    content: ContentStore,
    workers: Workers,
    namespace: str,
    lower: Sequence[Mount],
    upper: Sequence[Mount],
    *,
    media_type: str = "",
    ref: str = "",
    labels: Mapping[str, str] | None = None,
    epoch_ns: int | None = None,
    lease: str = "",
) -> Descriptor:
    """Pack the changes from `lower` to `upper`; the layer's descriptor.

    It is an OCI layer, by default gzip. The blob bears `labels`, and the digest of its plain
    bytes as `containerd.io/uncompressed`. The same mounts give the same bytes; no time in them
    is later than `epoch_ns`. A `ref` that was begun is begun anew; after a refusal its ingest
    stays, as containerd's does, while one that nobody named goes, also when all falls meanwhile.
    """
    media_type = media_type or OCI_LAYER_GZIP
    compression = COMPRESSIONS.get(media_type)
    if compression is None:
        raise Unimplemented(f"unsupported diff media type: {media_type}: not implemented")
    own = ref or f"diff-{os.urandom(12).hex()}"
    try:
        async with await content.open_ingest(namespace, own, lease=lease, job=not ref) as ingest:
            await ingest.truncate()
            packed = await workers.pack(lower, upper, compression, ingest.write, epoch_ns=epoch_ns)
            marked = dict(labels or {})
            if compression:
                marked[UNCOMPRESSED] = packed.diff_id
            return await _commit(content, namespace, ingest, media_type, marked, lease)
    finally:
        if not ref:
            with trio.CancelScope(shield=True):
                try:
                    await content.abort(namespace, own)
                except NotFound:
                    pass  # committed


async def _commit(
    content: ContentStore,
    namespace: str,
    ingest: Ingest,
    media_type: str,
    labels: Mapping[str, str],
    lease: str,
) -> Descriptor:
    state = await ingest.state()
    try:
        await ingest.commit(state.offset, state.digest, labels, lease=lease)
    except AlreadyExists:
        # Somebody brought the same bytes; perhaps without telling what is in them.
        info = content.info(namespace, state.digest)
        if UNCOMPRESSED in labels and UNCOMPRESSED not in info.labels:
            mark = {UNCOMPRESSED: labels[UNCOMPRESSED]}
            await content.update(namespace, state.digest, mark, [f"labels.{UNCOMPRESSED}"])
    return Descriptor(media_type=media_type, digest=parse_digest(state.digest), size=state.offset)
