"""Authorization: what a registry demands (WWW-Authenticate), and what a client has to answer it.

A registry asks for basic credentials, or for a token of its token server, which may give one
without credentials. What is asked of a token server is a *scope*: `repository:team/tool:pull,push`.
"""

import base64
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...actors.errors import PermissionDenied

HEADER_MAX = 16 << 10
CHALLENGES_MAX = 16
_SCHEME = re.compile(r"[\s,]*([A-Za-z][\w-]*)(?:[ \t]+|(?=,)|$)")
_PARAMETER = re.compile(r'[\s,]*([A-Za-z_][\w-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_SHOWABLE = re.compile(r"[\x21-\x7e]+(?: [\x21-\x7e]+)*")

Scopes = frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client gave: a name with its secret, a refresh token without a name, or a header."""

    username: str = ""
    secret: str = field(default="", repr=False)
    header: str = field(default="", repr=False)

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return not self.username and not self.secret and not self.header

    def basic(self) -> str:
        """As the header of basic authentication."""
        raw = f"{self.username}:{self.secret}".encode()
        return "Basic " + base64.b64encode(raw).decode()


AskCredentials = Callable[[str], Awaitable[Credentials]]
"""Asks the client for what a host wants to see; a second time when that was rejected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One demand of a registry."""

    scheme: str
    parameters: Mapping[str, str]


async def no_credentials(_: str) -> Credentials:
    """For clients that have none."""
    return Credentials()


def parse_challenges(header: str) -> Sequence[Challenge]:
    """The demands in a WWW-Authenticate header, those that are understood."""
    header = header[:HEADER_MAX]
    found: list[Challenge] = []
    at = 0
    while len(found) < CHALLENGES_MAX and (scheme := _SCHEME.match(header, at)):
        at = scheme.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(header, at):
            at = parameter.end()
            quoted, plain = parameter[2], parameter[3]
            text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters[parameter[1].lower()] = text
        found.append(Challenge(scheme=scheme[1].lower(), parameters=parameters))
    return found


def choose(challenges: Sequence[Challenge], host: str) -> Challenge:
    """The demand to answer: for a token rather than for a password."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    raise PermissionDenied(f"{host} asks for an authorization of no known kind: permission denied")


def showable(header: str) -> bool:
    """Whether a header's value is one; what is not would be told in an error of the HTTP client."""
    return bool(_SHOWABLE.fullmatch(header))


def scope_of(repository: str, *, push: bool = False) -> str:
    """What a token for a repository has to allow."""
    return f"repository:{repository}:{'pull,push' if push else 'pull'}"


def merged(scopes: Iterable[str]) -> Sequence[str]:
    """The same rights with each resource named once, in a fixed order."""
    rights: dict[str, dict[str, None]] = {}
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        if resource:
            rights.setdefault(resource, {}).update(dict.fromkeys(actions.split(",")))
    return [f"{resource}:{','.join(actions)}" for resource, actions in sorted(rights.items())]
