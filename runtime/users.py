"""Users of a container: `name`, `uid`, `name:group` or `uid:gid`, as its own files know them.

The files are a stranger's: they are read within bounds, line by line, and what looks like a number
is only ever a number. A number outside 0..2^31-1 is refused, since a kernel id would wrap.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from ..actors.errors import InvalidArgument, NotFound
from ..storage.snapshotter import Mount
from .spec import User

FILE_BYTES_MAX = 1 << 20
LINES_MAX = 20_000
ID_MAX = 2**31 - 1
GROUPS_MAX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Accounts:
    """The texts of /etc/passwd and /etc/group inside the container; empty when absent."""

    passwd: bytes = b""
    group: bytes = b""


PasswordFiles = Callable[[Sequence[Mount]], Awaitable[Accounts]]
"""Reads the two files in what the mounts show, in a worker process."""


def resolve_user(text: str, accounts: Accounts) -> User:
    """The numbers of a user; NotFound for a name that the files do not hold."""
    wanted, colon, wanted_group = text.partition(":")
    if not wanted or (colon and not wanted_group):
        raise InvalidArgument(f"user {text!r}: a name or number is missing")
    uid, gid, name = _user(wanted, accounts)
    if wanted_group:
        gid = _group(wanted_group, accounts)
        groups: Sequence[int] = ()
    else:
        groups = _groups_of(name, gid, accounts)
    return User(uid=uid, gid=gid, groups=groups)


def _user(wanted: str, accounts: Accounts) -> tuple[int, int, str]:
    number = _number(wanted)
    for fields in _lines(accounts.passwd):
        if len(fields) < 4 or (fields[0] != wanted if number is None else fields[2] != wanted):
            continue
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None:
            return uid, gid, fields[0]
    if number is None:
        raise NotFound(f"user {wanted!r}: not in the container's /etc/passwd: not found")
    return number, 0, ""


def _group(wanted: str, accounts: Accounts) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    for fields in _lines(accounts.group):
        if len(fields) >= 3 and fields[0] == wanted:
            gid = _number(fields[2])
            if gid is not None:
                return gid
    raise NotFound(f"group {wanted!r}: not in the container's /etc/group: not found")


def _groups_of(name: str, gid: int, accounts: Accounts) -> Sequence[int]:
    """The supplementary groups that list the user, without the primary one."""
    if not name:
        return ()
    found: list[int] = []
    for fields in _lines(accounts.group):
        if len(fields) >= 4 and name in fields[3].split(","):
            number = _number(fields[2])
            if number is not None and number != gid and len(found) < GROUPS_MAX:
                found.append(number)
    return tuple(sorted(set(found)))


def _number(text: str) -> int | None:
    """The id that a number means; None for a name. Whatever looks numeric is never a name."""
    digits = text.removeprefix("+").removeprefix("-")
    if not digits.isdecimal():
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > ID_MAX:
        raise InvalidArgument(f"id {text!r} is not within 0 and {ID_MAX}")
    return int(text)


def _lines(raw: bytes) -> Iterator[list[str]]:
    for count, line in enumerate(raw[:FILE_BYTES_MAX].split(b"\n", LINES_MAX)):
        if count < LINES_MAX and line and not line.startswith(b"#"):
            yield line.decode(errors="replace").strip().split(":")
