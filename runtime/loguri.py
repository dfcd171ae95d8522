"""Log URIs: what a client may name as a process's stdout and stderr, beside a FIFO or a file.

    file:///p                                 the file itself is given to the process, appending
    file:///p?max-size=10MiB&max-files=3      a logger of ours writes it: p, then p.1, p.2
    binary:///p?key=value&...                 containerd's logging protocol: p is run, with the
                                              query as arguments, for both streams

A logger reads FIFOs that lie in the bundle, one for each stream, which the process is given. So
what a client named stays in the records, and `inner` tells what it means to the container.

Standard library alone: the fork server preloads this file.
"""

import os
import re
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from ..actors.errors import FailedPrecondition, InvalidArgument, NotFound
from .stdio import Stdio, log_fifo, output_path

FILES_DEFAULT: Final = 5
CAPS: Final = frozenset({"max-size", "max-files"})
SIZE_BYTES_MIN: Final = 4096
UNITS: Final = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1000,
    "m": 1000**2,
    "mb": 1000**2,
    "g": 1000**3,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLog:
    """A file that is turned over when it has its size; so many are kept, the newest included."""

    path: str
    size_bytes_max: int
    files_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryLog:
    """A program that reads both streams."""

    path: str
    args: tuple[str, ...]


Log = FileLog | BinaryLog


def read_log(uri: str) -> Log | None:
    """What has to log; None where the process is given what the URI names."""
    if not uri.startswith(("file://", "binary://")):
        return None
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InvalidArgument(f"stdio {uri}: {error}") from error
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query: dict[str, str] = {}
    for key, value in pairs:
        query.setdefault(key, value)  # the first one counts, as for containerd
    if parts.scheme == "file":
        # Without a cap, the query of a file is passed over, as it is by containerd.
        return _file_log(uri, query) if CAPS & query.keys() else None
    words = [word for pair in query.items() for word in pair]
    return BinaryLog(path=output_path(uri, "binary"), args=tuple(words))


def logs_of(stdio: Stdio) -> tuple[Log | None, Log | None]:
    """What has to log stdout, and what stderr. InvalidArgument for what makes no sense."""
    stdout, stderr = read_log(stdio.stdout), read_log(stdio.stderr)
    if isinstance(stdout, BinaryLog):
        # One program gets both, also where only stdout names it: so does containerd.
        if stdio.stderr not in ("", stdio.stdout):
            raise InvalidArgument("stdio: stderr must lead to the logging binary of stdout")
        return stdout, None if stdio.terminal else stdout
    if isinstance(stderr, BinaryLog):
        raise InvalidArgument("stdio: a logging binary for stderr must be that of stdout")
    return stdout, None if stdio.terminal else stderr


def inner(stdio: Stdio, bundle: str, slot: str) -> Stdio:
    """The stdio that the process is given: the FIFOs of loggers in the place of their URIs."""
    stdout, stderr = logs_of(stdio)
    first = log_fifo(bundle, slot, 1)
    # One file for both: by one FIFO, so that it has them in the order in which they were written.
    second = (
        first if isinstance(stderr, FileLog) and stderr == stdout else log_fifo(bundle, slot, 2)
    )
    return replace(
        stdio,
        stdout=first if stdout is not None else stdio.stdout,
        stderr=second if stderr is not None else stdio.stderr,
    )


def check_binaries(stdio: Stdio, folder: str) -> None:
    """Refuse a logging binary that is not a program right in the folder, or below it.

    Looks at the disk: call it in a thread.
    """
    for log in logs_of(stdio):
        if not isinstance(log, BinaryLog):
            continue
        home = os.path.realpath(folder)
        # Both: by name, so that no link elsewhere can change where it leads; and in truth.
        named = os.path.normpath(log.path) == log.path and _is_below(log.path, folder)
        if not named or not _is_below(os.path.realpath(log.path), home):
            raise FailedPrecondition(
                f"stdio: logging binary {log.path}: only programs in {folder} may be run"
                " (setting log_binaries): failed precondition"
            )
        if not os.path.isfile(log.path):
            raise NotFound(f"stdio: logging binary {log.path}: not found")
        if not os.access(log.path, os.X_OK):
            raise InvalidArgument(f"stdio: logging binary {log.path}: not executable")


def _is_below(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder.rstrip("/") and path != folder


def _file_log(uri: str, query: dict[str, str]) -> FileLog:
    path = output_path(uri)
    unknown = sorted(query.keys() - CAPS)
    if unknown:
        raise InvalidArgument(f"stdio {uri}: unknown parameter {unknown[0]!r}")
    if "max-size" not in query:
        raise InvalidArgument(f"stdio {uri}: max-files without max-size")
    files = query.get("max-files", str(FILES_DEFAULT))
    if not re.fullmatch(r"[1-9][0-9]{0,3}", files):
        raise InvalidArgument(f"stdio {uri}: max-files is a number from 1 to 9999, not {files!r}")
    return FileLog(path=path, size_bytes_max=_size(uri, query["max-size"]), files_max=int(files))


def _size(uri: str, text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,15}) ?([a-zA-Z]*)", text)
    unit = UNITS.get(found[2].lower()) if found is not None else None
    if found is None or unit is None:
        raise InvalidArgument(f"stdio {uri}: max-size is a size such as 10MiB, not {text!r}")
    size = int(found[1]) * unit
    if size < SIZE_BYTES_MIN:
        raise InvalidArgument(f"stdio {uri}: max-size must be at least {SIZE_BYTES_MIN} bytes")
    return size
