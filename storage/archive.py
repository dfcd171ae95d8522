"""Archives: images in one tar file; `importer.py` reads them, `exporter.py` writes them.

Two layouts:

    OCI layout        oci-layout, index.json, blobs/<algorithm>/<hex>
    docker-archive    manifest.json; configs and layers under any name, layers also as links

What is written is both at once: an OCI layout with a `manifest.json` that names its blobs.
Here is what both ways agree on: the files' names, and how an image's name is written down.
"""

from collections.abc import Mapping

from ..actors.errors import InvalidArgument
from .descriptor import IMAGE_NAME, REF_NAME
from .reference import normalize

LAYOUT_VERSION = "1.0.0"
LAYOUT_FILE, INDEX_FILE, MANIFEST_FILE = "oci-layout", "index.json", "manifest.json"


def image_name(annotations: Mapping[str, str], base_name: str, *, strict: bool) -> str:
    """The name that annotations give, or none; `base_name` completes a bare tag."""
    if name := annotations.get(IMAGE_NAME, ""):
        return name if not strict or _is_under(name, base_name) else ""
    ref = annotations.get(REF_NAME, "")
    if not ref:
        return ""
    if any(mark in ref for mark in "/:@"):
        return ref if not strict or _is_under(ref, base_name) else ""
    return f"{base_name}:{ref}" if base_name else ref


def _is_under(name: str, base_name: str) -> bool:
    rest = name.removeprefix(base_name)
    return name.startswith(base_name) and (not rest or rest[0] in "/:@")


def tag_of(name: str) -> str:
    """What `org.opencontainers.image.ref.name` says of a full name: its tag, or its digest."""
    rest, _, digest = name.partition("@")
    last = rest.rpartition("/")[2]
    _, colon, tag = last.partition(":")
    return tag if colon else (digest or name)


def familiar(name: str) -> str:
    """A full name as people write it, with its tag: `busybox:latest`."""
    try:
        full = normalize(name)
    except InvalidArgument:
        return name
    return full.removeprefix("docker.io/").removeprefix("library/")
