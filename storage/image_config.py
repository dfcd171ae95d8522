"""An image's config: what its author wants its processes to be.

The config is a stranger's text. Reading it decides nothing on the host: `offered_labels` drops
every label under a prefix that a daemon gives meaning to, and each list is bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..actors.errors import InvalidArgument, ResourceExhausted
from .digest import Digest, digest_of, parse_digest
from .document import Document
from .platform import Platform

# Labels under these decide restarts, garbage collection and pods: a client's to set, never an
# image's.
RESERVED_PREFIXES = ("containerd.io/", "io.containerd.", "io.cri-containerd", "holdfast")
LAYERS_MAX = 512
WORDS_MAX = 4096
TEXT_BYTES_MAX = 128 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The facts of a config that a container's spec is made from."""

    platform: Platform
    diff_ids: tuple[Digest, ...]
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    user: str
    working_dir: str
    stop_signal: str
    labels: Mapping[str, str]
    volumes: tuple[str, ...]
    exposed_ports: tuple[str, ...]

    @property
    def args(self) -> tuple[str, ...]:
        """The first process's command line when the caller gives none."""
        return self.entrypoint + self.cmd


def read_image_config(raw: bytes, what: str = "image config") -> ImageConfig:
    """The facts in `raw`; what is malformed or without measure is refused."""
    document = Document.parse(raw, what)
    rootfs = document.child("rootfs")
    diff_ids = rootfs.texts("diff_ids")
    if len(diff_ids) > LAYERS_MAX:
        raise ResourceExhausted(f"{what}: {len(diff_ids)} layers, at most {LAYERS_MAX} are read")
    process = document.child("config")
    env = _words(process, "Env")
    for pair in env:
        if "=" not in pair:
            raise InvalidArgument(f"{what}: Env holds {pair[:100]!r}, which names no value")
    return ImageConfig(
        platform=Platform.from_document(document),
        diff_ids=tuple(parse_digest(text) for text in diff_ids),
        env=env,
        entrypoint=_words(process, "Entrypoint"),
        cmd=_words(process, "Cmd"),
        user=_text(process, "User"),
        working_dir=_text(process, "WorkingDir"),
        stop_signal=_text(process, "StopSignal"),
        labels=process.text_map("Labels"),
        volumes=process.keys("Volumes"),
        exposed_ports=process.keys("ExposedPorts"),
    )


def _text(document: Document, key: str) -> str:
    text = document.text(key)
    _check_text(text, f"{document.what}: {key}")
    return text


def _words(document: Document, key: str) -> tuple[str, ...]:
    words = document.texts(key)
    if len(words) > WORDS_MAX:
        raise ResourceExhausted(f"{document.what}: {key} has more than {WORDS_MAX} words")
    for word in words:
        _check_text(word, f"{document.what}: {key}")
    return words


def _check_text(text: str, what: str) -> None:
    # exec takes no NUL byte and no word above 128 KiB.
    if "\0" in text:
        raise InvalidArgument(f"{what} holds a NUL byte")
    if len(text) > TEXT_BYTES_MAX:
        raise ResourceExhausted(f"{what} is longer than {TEXT_BYTES_MAX} bytes")


def offered_labels(config: ImageConfig) -> dict[str, str]:
    """The config's labels that a container may inherit."""
    return {key: value for key, value in config.labels.items() if not is_reserved(key)}


def is_reserved(key: str) -> bool:
    """Whether a daemon gives the label a meaning."""
    return key.lower().startswith(RESERVED_PREFIXES)


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """The name of each layer together with all below it, as the OCI specification defines it."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)
