"""Descriptors: a pointer to content with its type, digest and size.

An *index* points to manifests, one for each platform; a *manifest* points to a config and
layers. `children` reads either; `gc_labels` writes the references as labels, so that garbage
collection keeps what an image needs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..actors.errors import FailedPrecondition
from .digest import Digest, digest_of, parse_digest
from .document import Document
from .platform import Platform

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar"

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
GC_CONTENT = "containerd.io/gc.ref.content"

_LAYERS = (OCI_LAYER, OCI_FOREIGN_LAYER, DOCKER_LAYER, DOCKER_FOREIGN_LAYER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A pointer to content."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str = ""
    """What a manifest is that is no image, as lists of manifests tell it."""

    def to_json(self) -> dict[str, object]:
        """As the OCI image specification writes it."""
        value: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.urls:
            value["urls"] = list(self.urls)
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.platform is not None:
            value["platform"] = self.platform.to_json()
        if self.artifact_type:
            value["artifactType"] = self.artifact_type
        return value

    @classmethod
    def from_document(cls, document: Document) -> "Descriptor":
        """As the OCI image specification writes it; a malformed digest is refused."""
        platform = None
        if document.has("platform"):
            platform = Platform.from_document(document.child("platform"))
        return cls(
            media_type=document.text("mediaType"),
            digest=parse_digest(document.text("digest")),
            size=document.number("size"),
            annotations=document.text_map("annotations"),
            platform=platform,
            urls=document.texts("urls"),
            artifact_type=document.text("artifactType"),
        )

    def named(self, annotations: Mapping[str, str]) -> "Descriptor":
        """The same pointer with these annotations added."""
        return replace(self, annotations={**self.annotations, **annotations})


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A manifest's pointers."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def describe(raw: bytes, media_type: str) -> Descriptor:
    """The descriptor of these bytes."""
    return Descriptor(media_type=media_type, digest=digest_of(raw), size=len(raw))


def is_index(media_type: str) -> bool:
    """Whether content of this type points to manifests."""
    return media_type in (OCI_INDEX, DOCKER_INDEX)


def is_manifest(media_type: str) -> bool:
    """Whether content of this type points to a config and layers."""
    return media_type in (OCI_MANIFEST, DOCKER_MANIFEST)


def is_config(media_type: str) -> bool:
    """Whether content of this type is an image's config."""
    return media_type in (OCI_CONFIG, DOCKER_CONFIG)


def is_layer(media_type: str) -> bool:
    """Whether content of this type is a tar of file changes, however compressed."""
    return media_type.startswith(_LAYERS)


def read_index(raw: bytes, what: str) -> tuple[Descriptor, ...]:
    """The manifests an index points to."""
    document = Document.parse(raw, what)
    _refuse_ambiguity(document)
    return tuple(Descriptor.from_document(child) for child in document.children("manifests"))


def read_manifest(raw: bytes, what: str) -> Manifest:
    """The config and the layers a manifest points to."""
    document = Document.parse(raw, what)
    _refuse_ambiguity(document)
    return Manifest(
        config=Descriptor.from_document(document.child("config")),
        layers=tuple(Descriptor.from_document(child) for child in document.children("layers")),
    )


def _refuse_ambiguity(document: Document) -> None:
    # One that is index and manifest at once would be read differently by different readers.
    if document.has("manifests") and (document.has("layers") or document.has("config")):
        raise FailedPrecondition(f"{document.what}: both an index and a manifest")
    if document.has("fsLayers") or document.has("history"):
        raise FailedPrecondition(f"{document.what}: manifests of schema 1 are not supported")


def children(raw: bytes, media_type: str, what: str) -> tuple[Descriptor, ...]:
    """What content of this type points to; a type that is neither index nor manifest: nothing."""
    if is_index(media_type):
        return read_index(raw, what)
    if is_manifest(media_type):
        manifest = read_manifest(raw, what)
        return (manifest.config, *manifest.layers)
    return ()


def gc_labels(pointed: Iterable[Descriptor]) -> dict[str, str]:
    """The labels by which a parent keeps these children from garbage collection."""
    labels: dict[str, str] = {}
    counts: dict[str, int] = {}
    for child in pointed:
        key = _gc_key(child.media_type)
        count = counts.get(key, 0)
        counts[key] = count + 1
        labels[f"{key}{count}" if count or key.endswith(".") else key] = child.digest
    return labels


def _gc_key(media_type: str) -> str:
    if is_index(media_type) or is_manifest(media_type):
        return f"{GC_CONTENT}.m."
    if is_layer(media_type):
        return f"{GC_CONTENT}.l."
    if is_config(media_type):
        return f"{GC_CONTENT}.config"
    return f"{GC_CONTENT}."
