"""Authorization: what a registry demands (WWW-Authenticate), and what answers it.

A registry asks for basic credentials, or for a token of its token server, which may give one
without credentials. Credentials are asked for once a host, and only when they are demanded.
"""

import base64
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ...actors.errors import PermissionDenied

_SCHEME = re.compile(r"\s*([A-Za-z][\w-]*)\s+")
_PARAMETER = re.compile(r'\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*,?')


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client gave: a name with its secret, a refresh token without a name, or a header."""

    username: str = ""
    secret: str = field(default="", repr=False)
    header: str = field(default="", repr=False)

    def basic(self) -> str:
        """As the header of basic authentication."""
        raw = f"{self.username}:{self.secret}".encode()
        return "Basic " + base64.b64encode(raw).decode()


AskCredentials = Callable[[str], Awaitable[Credentials]]
"""Asks the client for what a host wants to see."""


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
    found: list[Challenge] = []
    at = 0
    while scheme := _SCHEME.match(header, at):
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
