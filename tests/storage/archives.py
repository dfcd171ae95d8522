"""Image archives for tests: busybox in both layouts, and hostile ones."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
Member = tuple[str, bytes] | tarfile.TarInfo


def sha256(raw: bytes) -> str:
    """The digest of these bytes."""
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def as_json(value: object) -> bytes:
    """The value as JSON."""
    return json.dumps(value).encode()


def tar(members: Sequence[Member]) -> bytes:
    """A plain tar of these members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size, info.mode = len(member[1]), 0o755
            archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link as a member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def busybox_layers() -> list[bytes]:
    """Two layers: busybox itself, and a file beside it."""
    raw = BUSYBOX.read_bytes()
    return [
        tar([("bin/busybox", raw), link("bin/sh", "busybox")]),
        tar([("etc/motd", b"hello\n")]),
    ]


def config_of(layers: Sequence[bytes], **process: object) -> dict[str, object]:
    """An image config over these plain layers."""
    return {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], **process},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }


def docker_archive(
    tags: Sequence[str] = ("busybox:1",), layers: Sequence[bytes] | None = None
) -> bytes:
    """As `docker save` wrote it of old: layers by directories, one of them a link."""
    layers = busybox_layers() if layers is None else layers
    config = as_json(config_of(layers))
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    members: list[Member] = [("config.json", config), ("repositories", b"{}")]
    for number, (name, layer) in enumerate(zip(names, layers, strict=True)):
        members += [(f"{number}/VERSION", b"1.0"), (name, layer)]
    members.append(link("again/layer.tar", f"../{names[-1]}"))
    names[-1] = "again/layer.tar"
    manifest = [{"Config": "config.json", "RepoTags": list(tags), "Layers": names}]
    return tar([*members, ("manifest.json", as_json(manifest))])


def oci_archive(
    annotations: Mapping[str, str] | None = None,
    *,
    architectures: Sequence[str] = ("amd64",),
    missing: Sequence[str] = (),
    layers: Sequence[bytes] | None = None,
) -> bytes:
    """An OCI layout: one manifest, or an index of one for each architecture."""
    layers = busybox_layers() if layers is None else layers
    blobs: dict[str, bytes] = {}

    def add(raw: bytes, media_type: str, **more: object) -> dict[str, object]:
        blobs[sha256(raw)] = raw
        return {"mediaType": media_type, "digest": sha256(raw), "size": len(raw), **more}

    oci = "application/vnd.oci.image"
    manifests: list[dict[str, object]] = []
    for architecture in architectures:
        config = {**config_of(layers), "architecture": architecture}
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": add(as_json(config), f"{oci}.config.v1+json"),
            "layers": [
                add(gzip.compress(layer, 1, mtime=0), f"{oci}.layer.v1.tar+gzip")
                for layer in layers
            ],
        }
        raw = as_json(manifest)
        platform = {"os": "linux", "architecture": architecture}
        manifests.append(add(raw, f"{oci}.manifest.v1+json", platform=platform))
        if architecture in missing:
            del blobs[sha256(raw)]
    top = manifests[0]
    if len(manifests) > 1:
        raw = as_json({"schemaVersion": 2, "manifests": manifests})
        top = add(raw, f"{oci}.index.v1+json")
    top = {**top, "annotations": dict(annotations or {})}
    members: list[Member] = [
        (f"blobs/{digest.replace(':', '/')}", raw) for digest, raw in blobs.items()
    ]
    return tar(
        [
            *members,
            ("index.json", as_json({"schemaVersion": 2, "manifests": [top]})),
            ("oci-layout", as_json({"imageLayoutVersion": "1.0.0"})),
        ]
    )
