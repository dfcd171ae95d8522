"""containerd's configuration files: the one that is named and those that it imports, as one
document of the latest version.

Each file is brought to that version first, then laid over those before it. At the top, and in
`debug`, what is empty overrides nothing and lists grow; a table of `plugins` is merged key by key;
an entry of `proxy_plugins`, `stream_processors` or `timeouts` replaces the one of its name.
"""

import glob
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from ...actors.errors import InvalidArgument
from .migration import LATEST, Table, migrated

BY_ENTRY: Final = ("proxy_plugins", "stream_processors", "timeouts")
KINDS: Mapping[str, type] = {
    "version": int,
    "root": str,
    "state": str,
    "temp": str,
    "plugin_dir": str,
    "disabled_plugins": list,
    "required_plugins": list,
    "imports": list,
    "oom_score": int,
    "plugins": dict,
    "debug": dict,
    "grpc": dict,
    "ttrpc": dict,
    "metrics": dict,
    "cgroup": dict,
    **dict.fromkeys(BY_ENTRY, dict),
}
WORDS: Mapping[type, str] = {int: "a number", str: "a string", list: "a list", dict: "a table"}


@dataclass(slots=True)
class Document:
    """What the files say together, and what was noticed on the way."""

    values: Table = field(default_factory=dict[str, Any])
    version: int = LATEST
    """The version that the named file has."""
    remarks: list[str] = field(default_factory=list[str])


def read(path: Path, defaults: Mapping[str, Any] | None = None) -> Document:
    """The named file and its imports over the defaults. A file that does not exist says nothing.

    Raises InvalidArgument, naming the file, for what is no TOML, is of a version that is not known
    or has a key of another kind than containerd's.
    """
    document = Document(values=dict(defaults or {}))
    pending, seen = [path], set[str]()
    while pending:
        file = pending.pop(0)
        if os.path.realpath(file) in seen:
            continue
        seen.add(os.path.realpath(file))
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            document.remarks.append(f"{file}: No such file or directory")
            continue
        except OSError as error:
            raise InvalidArgument(f"config {file}: {error.strerror}") from error
        found = parse(text, str(file))
        version = max(found.get("version", 0), 1)
        if file is path:
            document.version = version
        elif version > document.version:
            raise InvalidArgument(
                f"config {file}: drop-in config version {version}"
                f" higher than root config version {document.version}"
            )
        document.remarks += unknown_keys(found, str(file))
        merge(document.values, migrated({k: v for k, v in found.items() if k in KINDS}))
        pending += imports(file, found.get("imports", []))
    return document


def parse(text: bytes, about: str) -> Table:
    """One file's own document, in the version that it has."""
    try:
        found = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"config {about}: failed to unmarshal TOML: {error}") from error
    for key, kind in KINDS.items():
        if key in found and type(found[key]) is not kind:
            raise InvalidArgument(f"config {about}: {key} must be {WORDS[kind]}")
    for key in ("disabled_plugins", "required_plugins", "imports"):
        if not all(isinstance(one, str) for one in found.get(key, [])):
            raise InvalidArgument(f"config {about}: {key} must be a list of strings")
    version = found.get("version", 0)
    if not 0 <= version <= LATEST:
        raise InvalidArgument(
            f"config {about}: expected containerd config version equal to or less than"
            f" `{LATEST}`, got `{version}`"
        )
    for key in ("disabled_plugins", "required_plugins"):
        names: list[str] = found.get(key, [])
        for name in names:
            if version > 1 and "." not in name:
                what = key.removesuffix("s").replace("_", " ")
                raise InvalidArgument(
                    f'config {about}: invalid {what} URI "{name}" expect io.containerd.x.vx'
                )
    return found


def unknown_keys(found: Table, about: str) -> Sequence[str]:
    """A remark for each key at the top that containerd does not have."""
    return [f"{about}: unknown key {key}" for key in found if key not in KINDS]


def imports(file: Path, patterns: Sequence[str]) -> Sequence[Path]:
    """The files that patterns name, from where the importing file is; a pattern may match none."""
    found: list[Path] = []
    for pattern in patterns:
        path = Path(os.path.normpath(file.parent / pattern))
        if "*" in pattern:
            found += map(Path, sorted(glob.glob(str(path))))
        else:
            found.append(path)
    return found


def merge(into: Table, over: Table) -> None:
    """Lay one document over another, both of the latest version."""
    for key, value in over.items():
        if key in BY_ENTRY:
            into[key] = {**into.get(key, {}), **value}
        elif key == "plugins":
            into[key] = _deep(into.get(key, {}), value)
        elif isinstance(value, dict):
            table = dict(into.get(key, {}))
            merge(table, cast("Table", value))
            into[key] = table
        elif isinstance(value, list):
            known, more = list[Any](into.get(key, [])), cast("Sequence[Any]", value)
            into[key] = known + [one for one in more if one not in known]
        elif value or key not in into:
            into[key] = value


def _deep(into: Table, over: Table) -> Table:
    merged = dict(into)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _deep(merged[key], cast("Table", value))
        else:
            merged[key] = value
    return merged
