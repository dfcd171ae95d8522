"""Images of random bytes, put into a registry without any code of ours."""

import gzip
import http.client
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from urllib.parse import urlsplit

from archives import as_json, sha256

from holdfast.storage.descriptor import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST

Described = dict[str, object]


@dataclass(frozen=True)
class Made:
    """An image: its top digest, its blobs, the media types of the manifests among them, and its
    layers in order."""

    digest: str
    blobs: dict[str, bytes]
    manifests: dict[str, str]
    layers: list[str]


def make(dice: Random, sizes: Sequence[int], *, architectures: Sequence[str] = ("amd64",)) -> Made:
    """An image with layers of these sizes, which cannot be unpacked; an index for several."""
    layers = [dice.randbytes(size) for size in sizes]
    return _image(layers, layers, architectures)


def make_of(layers: Sequence[bytes]) -> Made:
    """An image of these plain layers, compressed."""
    return _image(layers, [gzip.compress(layer, 1, mtime=0) for layer in layers], ["amd64"])


def _image(plain: Sequence[bytes], packed: Sequence[bytes], architectures: Sequence[str]) -> Made:
    blobs: dict[str, bytes] = {}
    manifests: dict[str, str] = {}

    def add(raw: bytes, media_type: str, **more: object) -> Described:
        blobs[sha256(raw)] = raw
        return {"mediaType": media_type, "digest": sha256(raw), "size": len(raw), **more}

    pointers: list[Described] = []
    for architecture in architectures:
        config = as_json(
            {
                "architecture": architecture,
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in plain]},
            }
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": add(config, OCI_CONFIG),
            "layers": [add(layer, OCI_LAYER_GZIP) for layer in packed],
        }
        platform = {"os": "linux", "architecture": architecture}
        pointers.append(add(as_json(manifest), OCI_MANIFEST, platform=platform))
        manifests[str(pointers[-1]["digest"])] = OCI_MANIFEST
    top = pointers[0]
    if len(pointers) > 1:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": pointers}
        top = add(as_json(index), OCI_INDEX)
        manifests[str(top["digest"])] = OCI_INDEX
    return Made(str(top["digest"]), blobs, manifests, [sha256(layer) for layer in packed])


def upload(authority: str, repository: str, tag: str, image: Made) -> None:
    """Put it there under the tag; blocks."""
    connection = http.client.HTTPConnection(authority, timeout=60)

    def ask(method: str, path: str, body: bytes = b"", kind: str = "") -> str:
        headers = {"Content-Type": kind or "application/octet-stream"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (201, 202), (method, path, answer.status, said)
        return answer.getheader("Location") or ""

    for digest, raw in image.blobs.items():
        if digest not in image.manifests:
            place = urlsplit(ask("POST", f"/v2/{repository}/blobs/uploads/"))
            ask("PUT", f"{place.path}?{place.query}&digest={digest}", raw)
    for digest, kind in image.manifests.items():
        name = tag if digest == image.digest else digest
        ask("PUT", f"/v2/{repository}/manifests/{name}", image.blobs[digest], kind)
    connection.close()
