"""Build a small OCI image archive from Debian's busybox-static, with the standard library alone.

    python examples/busybox_image.py busybox.tar docker.io/library/busybox:latest

The archive is an OCI image layout in a tar file (OCI image-spec, "Image Layout"), with the
`manifest.json` beside it that Docker reads before its version 25, so that `holdfast import`,
`ctr images import` and `docker load` all take it. The same busybox gives the same bytes: every
time stamp is zero.
"""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

BUSYBOX = Path("/bin/busybox")
DEFAULT_NAME = "docker.io/library/busybox:latest"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

Descriptor = dict[str, object]


def build(
    archive: Path, name: str = DEFAULT_NAME, config: Mapping[str, object] | None = None
) -> str:
    """Write the archive and return the manifest's digest.

    `config` goes into the image's own `config` object (Env, Cmd, User, Labels ...).
    Raises FileNotFoundError where busybox-static is not installed.
    """
    layer = _layer()
    settings = {"Env": ["PATH=/bin:/sbin:/usr/bin"], "Cmd": ["sh"], **(config or {})}
    image_config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "busybox-static"}],
        }
    )
    packed = gzip.compress(layer, mtime=0)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor(CONFIG, image_config),
            "layers": [_descriptor(LAYER, packed)],
        }
    )
    entry = _descriptor(MANIFEST, manifest)
    entry["platform"] = {"architecture": "amd64", "os": "linux"}
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = _json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
    for_docker = _json(
        [{"Config": _place(image_config), "RepoTags": [name], "Layers": [_place(packed)]}]
    )
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        _add(tar, "manifest.json", for_docker)
        for blob in (image_config, packed, manifest):
            _add(tar, _place(blob), blob)
    return _digest(manifest)


def _layer() -> bytes:
    names = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "var"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            tar.addfile(entry)
        _add(tar, "bin/busybox", BUSYBOX.read_bytes(), 0o755)
        for applet in sorted(set(names.split()) - {"busybox"}):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(entry)
        _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")
        _add(tar, "etc/group", b"root:x:0:\nuser:x:1000:\nstaff:x:50:user\n")
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _place(data: bytes) -> str:
    return "blobs/sha256/" + _digest(data).removeprefix("sha256:")


def _descriptor(media_type: str, data: bytes) -> Descriptor:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    digest = build(target, sys.argv[2] if len(sys.argv) > 2 else DEFAULT_NAME)
    sys.stdout.write(f"{target} {digest}\n")
