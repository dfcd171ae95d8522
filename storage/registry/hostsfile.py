"""A host's folder: `hosts.toml` as containerd has it, or certificates as Docker lays them out.

    server = "https://registry.example"         whom to ask last; the reference's host unless given
    [host."https://mirror.example"]             whom to ask before, in the order of the file
    capabilities = ["pull", "resolve"]          what it is asked for

Keys at the top are the server's. Paths are relative to the file. What is not known is another
program's; what is known and of a wrong form is refused, with its file and key.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from ...actors.errors import InvalidArgument
from .hosts import CAPABILITIES, Host, origin_of, secured

FILE_BYTES_MAX = 1 << 20
_UNITS_S: Mapping[str, float] = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0
}  # fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


def read_folder(folder: Path, own: Host, *, known_scheme: bool) -> Sequence[Host]:
    """The hosts that a folder tells of; `own` is the reference's host with nothing configured,
    `known_scheme` whether somebody chose its scheme."""
    path = folder / "hosts.toml"
    if not path.is_file():
        authorities, certificates = _certificates(folder)
        found = replace(own, authorities=authorities, certificates=certificates)
        with_tls = bool(found.authorities or found.certificates)
        return [secured(found) if with_tls and not known_scheme else found]
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
        if len(raw) > FILE_BYTES_MAX:
            raise InvalidArgument(f"{path}: more than {FILE_BYTES_MAX} bytes")
        table = tomllib.loads(raw.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"{path}: {error}") from error
    entries = _Table(path, table, "").table("host")
    hosts = [
        _host(_Table(path, value, f"host {name!r}: "), name, own) for name, value in entries.items()
    ]
    top = _Table(path, table, "")
    last = _host(top, top.text("server"), own)
    if not top.text("server") and (last.authorities or last.certificates) and not known_scheme:
        last = secured(last)
    return [*hosts, last]


def _certificates(folder: Path) -> tuple[Sequence[Path], Sequence[tuple[Path, Path | None]]]:
    """Docker's layout: *.crt may sign the server's; *.cert is shown, with *.key."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InvalidArgument(f"{folder}: {error}") from error
    shown = [
        (path, path.with_suffix(".key") if path.with_suffix(".key").is_file() else None)
        for path in files
        if path.suffix == ".cert"
    ]
    return [path for path in files if path.suffix == ".crt"], shown


def _host(table: "_Table", name: str, own: Host) -> Host:
    capabilities = frozenset(one.lower() for one in table.texts("capabilities"))
    if not capabilities <= CAPABILITIES:
        unknown = ", ".join(sorted(capabilities - CAPABILITIES))
        raise table.refusal(f"unknown capabilities {unknown}")
    return Host(
        base=_base(table, name) if name else own.base,
        capabilities=capabilities or CAPABILITIES,
        skip_verify=table.flag("skip_verify"),
        authorities=[table.path.parent / one for one in table.texts("ca")],
        certificates=_pairs(table),
        headers=_headers(table),
        connect_within_s=table.seconds("dial_timeout"),
        silent_within_s=table.seconds("read_timeout"),
        proxy=_proxy(table),
    )


def _base(table: "_Table", name: str) -> str:
    url = name if "://" in name else f"https://{name}"
    # A name with a secret in it would be told in errors.
    if _path_of(url) is None or "@" in url or "?" in url or "#" in url:
        raise table.refusal(f"{name.rpartition('@')[2][:200]!r} is no server")
    base = url.rstrip("/")
    if not table.flag("override_path") and not base.endswith("/v2"):
        base += "/v2"
    return base


def _pairs(table: "_Table") -> Sequence[tuple[Path, Path | None]]:
    folder = table.path.parent
    pairs: list[tuple[Path, Path | None]] = []
    for one in table.items("client"):
        match one:
            case str():
                pairs.append((folder / one, None))
            case [str() as certificate, str() as key]:
                pairs.append((folder / certificate, folder / key if key else None))
            case _:
                raise table.refusal("client is a file, files, or pairs of certificate and key")
    return pairs


def _headers(table: "_Table") -> Mapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in table.table("header").items():
        # A value may be a secret: it is not told.
        values = cast("list[object]", value) if isinstance(value, list) else [value]
        text = ", ".join(one for one in values if isinstance(one, str))
        whole = all(isinstance(one, str) for one in values)
        if not whole or not _HEADER.fullmatch(name) or not _VALUE.fullmatch(text):
            raise table.refusal(f"header {name[:100]!r} is no text that HTTP allows")
        headers[name] = text
    return headers


def _proxy(table: "_Table") -> str:
    proxy = table.text("proxy")
    if proxy and (_path_of(proxy) not in ("", "/") or "?" in proxy or "#" in proxy):
        raise table.refusal("proxy is the address of an http or https proxy: http://name:port")
    return proxy


def _path_of(url: str) -> str | None:
    """The path of an address of http; None where it is none."""
    try:
        origin_of(url)
    except InvalidArgument:
        return None
    return urlsplit(url).path


class _Table:
    """A table of the file, read by type; `where` names it in refusals."""

    def __init__(self, path: Path, value: object, where: str) -> None:
        self.path = path
        self._where = where
        if not isinstance(value, dict):
            raise self.refusal("is no table")
        self._values = cast("dict[str, object]", value)

    def refusal(self, text: str) -> InvalidArgument:
        """What is wrong, with the file."""
        return InvalidArgument(f"{self.path}: {self._where}{text}")

    def text(self, key: str) -> str:
        value = self._values.get(key, "")
        if not isinstance(value, str):
            raise self.refusal(f"{key} is no string")
        return value

    def flag(self, key: str) -> bool:
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise self.refusal(f"{key} is true or false")
        return value

    def items(self, key: str) -> Sequence[object]:
        value = self._values.get(key, [])
        return cast("list[object]", value) if isinstance(value, list) else [value]

    def texts(self, key: str) -> Sequence[str]:
        items = self.items(key)
        texts = [one for one in items if isinstance(one, str)]
        if len(texts) != len(items):
            raise self.refusal(f"{key} is a string or a list of strings")
        return texts

    def table(self, key: str) -> Mapping[str, object]:
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.refusal(f"{key} is no table")
        return cast("dict[str, object]", value)

    def seconds(self, key: str) -> float | None:
        """A duration as Go writes it, 1m30s; None where it is absent, or nothing."""
        text = self.text(key)
        parts = _DURATION.findall(text)
        if "".join(number + unit for number, unit in parts) != text and text != "0":
            raise self.refusal(f"{key} = {text[:40]!r} is no duration such as 30s or 1m30s")
        return sum(float(number) * _UNITS_S[unit] for number, unit in parts) or None
