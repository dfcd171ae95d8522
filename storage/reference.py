"""Image references: the names that people write, and the full names that are stored.

    busybox               docker.io/library/busybox:latest
    user/tool:1.2         docker.io/user/tool:1.2
    localhost:5000/tool   localhost:5000/tool:latest
    tool@sha256:...       docker.io/library/tool@sha256:...

The grammar is that of github.com/distribution/reference: a first component is a host only when
it holds a dot or a colon, or is `localhost`.
"""

import re
from typing import Final

from ..actors.errors import InvalidArgument
from .digest import fault_of_digest

DEFAULT_HOST: Final = "docker.io"
DEFAULT_PATH: Final = "library/"
DEFAULT_TAG: Final = "latest"
NAME_MAX: Final = 255
"""How long a repository's name may be, and how long its host."""
SHOWN_MAX: Final = 600

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}")


def normalize(text: str) -> str:
    """The full name of what a person wrote; InvalidArgument when it is no reference."""
    rest, at, digest = text.partition("@")
    if at and fault_of_digest(digest):
        raise _invalid(text, f"the digest is malformed: {fault_of_digest(digest)}")
    if not at and _HEX.fullmatch(rest):
        raise _invalid(text, "64 hexadecimal digits are an id, not a name")
    host, path = _split_host(rest)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(text, "the tag is malformed")
    if not _HOST.fullmatch(host):
        raise _invalid(text, "the host is malformed")
    if not _PATH.fullmatch(path):
        upper = path != path.lower()
        raise _invalid(text, "a name is lower case" if upper else "the name is malformed")
    if host == DEFAULT_HOST and "/" not in path:
        path = DEFAULT_PATH + path
    if len(path) > NAME_MAX or len(host) > NAME_MAX:
        raise _invalid(text, f"the name is longer than {NAME_MAX} characters")
    name = f"{host}/{path}"
    if colon:
        name += f":{tag}"
    elif not at:
        name += f":{DEFAULT_TAG}"
    return f"{name}@{digest}" if at else name


def _split_host(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        host = DEFAULT_HOST if first in ("index.docker.io", DEFAULT_HOST) else first
        return host, rest
    return DEFAULT_HOST, text


def _invalid(text: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"invalid reference {text[:SHOWN_MAX]!r}: {reason}")
