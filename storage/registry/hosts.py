"""Hosts: which servers are asked for an image, in which order, and how.

    example.org:5000/team/tool:1    host example.org:5000, repository team/tool, object 1

A directory of `hosts.toml` files, one folder a host, says so for each host (containerd's
docs/hosts.md): mirrors first, the `server` last. Without one it is the host itself, by https but
for the loopback.
"""

import ipaddress
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from ...actors.errors import InvalidArgument
from ..digest import parse_digest
from ..reference import normalize

CAPABILITIES = frozenset({"pull", "resolve", "push"})
FILE_BYTES_MAX = 1 << 20
ALIASES: Mapping[str, str] = {"docker.io": "registry-1.docker.io"}


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
    headers: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def authority(self) -> str:
        """The host and port that is asked."""
        return urlsplit(self.base).netloc


def parse_remote(text: str) -> Remote:
    """The place that a reference names; InvalidArgument when it is none."""
    full = normalize(text)
    rest, _, digest = full.partition("@")
    host, _, path = rest.partition("/")
    repository, _, tag = path.partition(":")
    if digest:
        parse_digest(digest)
    return Remote(text=text, host=host, repository=repository, tag=tag, digest=digest)


def hosts_of(remote: Remote, folder: Path | None, scheme: str = "") -> Sequence[Host]:
    """The servers to ask, the first choice first. Reads files; blocks."""
    if folder is not None:
        for name in (remote.host, remote.host.replace(":", "_") + "_", "_default"):
            path = folder / name / "hosts.toml"
            if path.is_file():
                return _read(path, remote, scheme)
    return [_plain(remote, scheme)]


def _plain(remote: Remote, scheme: str) -> Host:
    name = ALIASES.get(remote.host, remote.host)
    if scheme not in ("", "http", "https"):
        raise InvalidArgument(f"default scheme {scheme!r}: http or https")
    return Host(base=f"{scheme or _scheme(name)}://{name}/v2")


def _scheme(authority: str) -> str:
    """http on the loopback, where nobody listens in; https anywhere else."""
    return "http" if is_loopback(authority) else "https"


def is_loopback(authority: str) -> bool:
    """Whether a host and port are on this machine alone."""
    name = urlsplit(f"//{authority}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _read(path: Path, remote: Remote, scheme: str) -> Sequence[Host]:
    try:
        with path.open("rb") as file:
            table = tomllib.loads(file.read(FILE_BYTES_MAX).decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    entries = table.get("host", {})
    if not isinstance(entries, dict):
        raise InvalidArgument(f"{path}: host is no table")
    found = [
        _host(path, name, entry, scheme)
        for name, entry in cast("dict[str, object]", entries).items()
    ]
    server = table.get("server", "")
    own = _plain(remote, scheme)
    if server:
        own = _host(path, str(server), table, scheme)
    return [*found, own]


def _host(path: Path, name: str, entry: object, scheme: str) -> Host:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{path}: host {name!r} is no table")
    table = cast("dict[str, object]", entry)
    if "://" not in name:
        name = f"{scheme or _scheme(name)}://{name}"
    url = urlsplit(name)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc:
        raise InvalidArgument(f"{path}: {name!r} is no server")
    base = name.rstrip("/")
    if not table.get("override_path") and not base.endswith("/v2"):
        base += "/v2"
    if "client" in table:
        raise InvalidArgument(f"{path}: client certificates are not supported yet")
    capabilities = frozenset(_texts(table.get("capabilities", sorted(CAPABILITIES))))
    if not capabilities <= CAPABILITIES:
        raise InvalidArgument(f"{path}: unknown capabilities of {name!r}")
    headers = table.get("header", {})
    if not isinstance(headers, dict):
        raise InvalidArgument(f"{path}: header is no table")
    return Host(
        base=base,
        capabilities=capabilities,
        skip_verify=table.get("skip_verify") is True,
        authorities=[path.parent / one for one in _texts(table.get("ca", []))],
        headers={
            key: ", ".join(_texts(value))
            for key, value in cast("dict[str, object]", headers).items()
        },
    )


def _texts(value: object) -> Sequence[str]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [str(one) for one in values]
