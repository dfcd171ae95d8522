"""Hosts: which servers are asked for an image, in which order, and how.

    example.org:5000/team/tool:1    host example.org:5000, repository team/tool, object 1

A folder has one folder a host, as containerd and Docker know them: a `hosts.toml` or certificates
(`hostsfile.py`). Mirrors come first, the `server` last. Without one it is the host itself, by
https but for the loopback.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from ...actors.errors import InvalidArgument
from ..digest import parse_digest
from ..reference import normalize

CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})
ALIASES: Mapping[str, str] = {"docker.io": "registry-1.docker.io"}
DEFAULT_FOLDER = "_default"
PORTS: Mapping[str, int] = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """An image's place: its registry, its repository there, its tag or digest."""

    text: str
    host: str
    repository: str
    tag: str
    digest: str

    @property
    def object(self) -> str:
        """What the registry is asked for."""
        return self.digest or self.tag


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One server: `base` is what paths of the API follow."""

    base: str
    capabilities: frozenset[str] = CAPABILITIES
    skip_verify: bool = False
    authorities: Sequence[Path] = ()
    """Files of certificates that may sign the server's, beside those that the system trusts."""
    certificates: Sequence[tuple[Path, Path | None]] = ()
    """What we show: a certificate's file and its key's, None where both are one file."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    connect_within_s: float | None = None
    silent_within_s: float | None = None
    """How long it may say nothing in the middle of an answer."""
    proxy: str = field(default="", repr=False)
    """What is asked in its place, whatever the environment says."""

    @property
    def authority(self) -> str:
        """The host and port that is asked."""
        return urlsplit(self.base).netloc

    @property
    def origin(self) -> tuple[str, str, int]:
        """What secrets are shown to."""
        return origin_of(self.base)

    def stands_in_for(self, name: str) -> bool:
        """Whether it is another server than a reference's host."""
        return self.authority != ALIASES.get(name, name) and self.authority != name


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL; InvalidArgument where it has none."""
    try:
        split = urlsplit(url)
        port = split.port or PORTS[split.scheme]
    except (ValueError, KeyError) as error:
        raise InvalidArgument(f"{url.partition('?')[0][:200]!r} is no address of http") from error
    if not split.hostname:
        raise InvalidArgument(f"{url.partition('?')[0][:200]!r} names no host")
    return split.scheme, split.hostname, port


def joined(url: str, location: str) -> str:
    """The address that a location names, seen from a URL; InvalidArgument: it is none of http."""
    try:
        target = urljoin(url, location).partition("#")[0]
    except ValueError as error:
        raise InvalidArgument(f"{location.partition('?')[0][:200]!r} is no address") from error
    origin_of(target)
    return target


def parse_remote(text: str) -> Remote:
    """The place that a reference names; InvalidArgument when it is none."""
    full = normalize(text)
    rest, _, digest = full.partition("@")
    host, _, path = rest.partition("/")
    repository, _, tag = path.partition(":")
    if digest:
        parse_digest(digest)
    return Remote(text=text, host=host, repository=repository, tag=tag, digest=digest)


def hosts_of(remote: Remote, folders: Sequence[Path], scheme: str = "") -> Sequence[Host]:
    """The servers to ask, the first choice first. Reads files; blocks."""
    # Read where it is needed: a pull without such folders needs no reader of them.
    from .hostsfile import read_folder

    own = plain_host(remote.host, scheme)
    for folder in folders:
        for path in folders_of(folder, remote.host):
            if path.is_dir():
                return read_folder(path, own, known_scheme=bool(scheme))
        if (folder / "hosts.toml").is_file():
            return read_folder(folder, own, known_scheme=bool(scheme))
    return [own]


def folders_of(folder: Path, host: str) -> Sequence[Path]:
    """Where the settings of a host may lie below a folder: the first that is there counts."""
    name, colon, port = host.rpartition(":")
    with_port = [f"{name}_{port}_"] if colon and name and port.isdigit() else []
    return [folder / one for one in (*with_port, host, DEFAULT_FOLDER)]


def split_folders(text: str) -> Sequence[Path]:
    """The folders of a setting: several are separated by colons, as in PATH."""
    if text and Path(text).is_dir():
        return [Path(text)]
    return [Path(one) for one in text.split(":") if one]


def plain_host(name: str, scheme: str = "") -> Host:
    """A reference's host as it is spoken to where nothing is configured."""
    name = ALIASES.get(name, name)
    if scheme not in ("", "http", "https"):
        raise InvalidArgument(f"default scheme {scheme!r}: http or https")
    origin_of(f"https://{name}")
    return Host(base=f"{scheme or _scheme(name)}://{name}/v2")


def secured(host: Host) -> Host:
    """The same, by https: what certificates are given for is not spoken to in the clear."""
    return replace(host, base="https://" + host.base.partition("://")[2])


def _scheme(authority: str) -> str:
    """http on the loopback, where nobody listens in; https anywhere else."""
    return "http" if is_loopback(authority) and not authority.endswith(":443") else "https"


def is_loopback(authority: str) -> bool:
    """Whether a host and port are on this machine alone."""
    name = urlsplit(f"//{authority}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
