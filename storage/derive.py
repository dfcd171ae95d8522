"""Derived images: one more layer over an image, and its config changed.

The new manifest is of the same family as the old one, Docker's or OCI's, and lists the old layers
as they are. A layer in which nothing is, is left out, and its step of the history says so.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, cast

from ..actors.errors import InvalidArgument, NotFound
from .configchange import changed
from .content import ContentStore
from .descriptor import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_LAYER,
    Descriptor,
    describe,
)
from .digest import digest_of
from .document import canonical_json, parse_json
from .tarwriter import END
from .unpack import UNCOMPRESSED, Resolved, label_children

EMPTY_DIFF_ID = digest_of(END)
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorship:
    """What the history says of the step, and what the config is changed in."""

    author: str = ""
    message: str = ""
    created_by: str = ""
    changes: Sequence[str] = ()
    at_ns: int = 0


async def derive(
    content: ContentStore,
    namespace: str,
    base: Resolved,
    layer: Descriptor,
    authorship: Authorship,
    *,
    lease: str,
) -> Descriptor:
    """Write the config and the manifest of an image that is `base` with a further layer, an OCI
    one that is here; its descriptor. The lease holds all of it."""
    old = base.manifest
    for part in (old.config, *old.layers):
        await content.obtain(namespace, part.digest, lease=lease)
        if not await content.hold(namespace, part.digest, lease):
            raise NotFound(
                f"the image that it is made from is not here as a whole: {part.digest}: not found"
            )
    diff_id = content.info(namespace, layer.digest).labels.get(UNCOMPRESSED, layer.digest)
    empty = diff_id == EMPTY_DIFF_ID
    raw = await content.read_all(namespace, old.config.digest)
    config = cast(Json, parse_json(raw, f"config {old.config.digest}"))
    config = configured(config, authorship, "" if empty else diff_id)
    config_raw = canonical_json(config)
    new_config = describe(config_raw, old.config.media_type)

    docker = base.descriptor.media_type == DOCKER_MANIFEST
    if docker:
        compression = layer.media_type.removeprefix(OCI_LAYER).lstrip("+")
        media_type = f"{DOCKER_LAYER}.{compression}" if compression else DOCKER_LAYER
        layer = replace(layer, media_type=media_type)
    layers = old.layers if empty else (*old.layers, layer)
    manifest = {
        "schemaVersion": 2,
        "mediaType": base.descriptor.media_type,
        "config": new_config.to_json(),
        "layers": [one.to_json() for one in layers],
    }
    manifest_raw = canonical_json(manifest)
    for one in (config_raw, manifest_raw):
        ref = f"derive-{os.urandom(12).hex()}"
        await content.write_blob(namespace, ref, one, lease=lease)
    made = describe(manifest_raw, base.descriptor.media_type)
    await label_children(content, namespace, made)
    return made


def configured(config: Mapping[str, Any], authorship: Authorship, diff_id: str) -> Json:
    """The config with a further step; without a diff id the step has no layer."""
    moment = datetime.fromtimestamp(authorship.at_ns / 1e9, UTC).isoformat()
    created = moment.replace("+00:00", "Z")
    step: Json = {"created": created, "created_by": authorship.created_by}
    if authorship.author:
        step["author"] = authorship.author
    if authorship.message:
        step["comment"] = authorship.message
    rootfs: Json = dict(config.get("rootfs") or {"type": "layers"})
    if diff_id:
        rootfs["diff_ids"] = [*cast("list[str]", rootfs.get("diff_ids") or []), diff_id]
    else:
        step["empty_layer"] = True
    history: object = config.get("history") or []
    if not isinstance(history, list):
        raise InvalidArgument("the image's own history is no list: invalid argument")
    result: Json = {
        **config,
        "created": created,
        "config": changed(config.get("config") or {}, authorship.changes),
        "rootfs": rootfs,
        "history": [*cast("list[object]", history), step],
    }
    if authorship.author:
        result["author"] = authorship.author
    # What an old builder ran for the step before, and its id there, say nothing of this image.
    for key in ("container", "container_config", "id", "parent"):
        result.pop(key, None)
    return result
