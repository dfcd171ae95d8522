"""Failures of registries in our words: which request, what was said, what to do. Never a secret.

A failure is either an answer that says no, or no answer. Both become a `Failure`: the refusal that
the caller gets, and whether asking again may help.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ...actors.errors import (
    NotFound,
    OutOfRange,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unknown,
)

ERROR_BYTES_MAX = 16 << 10
SAID_MAX = 300
ERRORS_MAX = 5
# Answers after which the same request may succeed.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_UNSEEN = re.compile(r"[^\x20-\x7e\xa0-\U0010ffff]+")
_SECRET_QUERY = re.compile(r"(\w+://[^\s?#\"']*)[?#][^\s\"']*")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request failed, and whether and when to ask again."""

    refusal: Refusal
    passing: bool = False
    status: int = 0
    """0 where no answer came."""
    retry_after_s: float | None = None


def failure_of_answer(
    what: str, status: int, headers: Mapping[str, str], raw: bytes, retry_after_s: float | None
) -> Failure:
    """What an answer means that is not a good one; `raw` is the beginning of its body."""
    said = said_in(raw, headers.get("Content-Type", ""))
    text = f"{what}: HTTP status {status}"
    text = f"{text}: {said}" if said else text
    refusal = _refusal(status, text, said, retry_after_s)
    return Failure(refusal, status in PASSING, status, retry_after_s)


def _refusal(status: int, text: str, said: str, retry_after_s: float | None) -> Refusal:
    later = "" if retry_after_s is None else f": retry after {retry_after_s:.0f} s"
    match status:
        case 404:
            return NotFound(f"{text}: not found")
        case 401:
            return PermissionDenied(
                f"{text}: access denied, the repository does not exist or may require"
                " authorization: log in to the registry"
            )
        case 403:
            return PermissionDenied(
                f"{text}: access denied, the repository does not exist or may require"
                " authorization that these credentials do not give"
            )
        case 416:
            return OutOfRange(f"{text}: out of range")
        case 429:
            return ResourceExhausted(f"{text}: too many requests{later or ': try again later'}")
        case 400 if "HTTPS server" in said:
            return Unknown(f"{text}: name it as https:// in hosts.toml")
        case _ if status >= 500 or status in PASSING:
            return Unavailable(f"{text}{later}")
        case _:
            return Unknown(text)


def said_in(raw: bytes, content_type: str) -> str:
    """The words of a registry's or a token server's answer, in one line and not too many."""
    text = raw[:ERROR_BYTES_MAX].decode(errors="replace").strip()
    if "html" in content_type or text[:1] == "<":
        return ""  # a page for people, of a proxy or a balancer
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return shown(text)
    if not isinstance(value, dict):
        return shown(text)
    document = cast("dict[str, object]", value)
    errors = document.get("errors")
    told: list[str] = []
    if isinstance(errors, list):
        for one in cast("list[object]", errors)[:ERRORS_MAX]:
            if isinstance(one, dict):
                told.append(_words(cast("dict[str, object]", one), "code", "message"))
    if not told:
        told = [_words(document, "error", "error_description", "message", "details", "detail")]
    return shown("; ".join(one for one in told if one))


def _words(document: Mapping[str, object], *keys: str) -> str:
    values = (document.get(key) for key in keys)
    return ": ".join(value for value in values if isinstance(value, str) and value)


def shown(text: str) -> str:
    """A stranger's text, fit for one line of ours: no control characters, no query of a URL."""
    return _SECRET_QUERY.sub(r"\1", _UNSEEN.sub(" ", text)).strip()[:SAID_MAX]


def place(url: str) -> str:
    """A URL for an error: without its query and its user, which may be secrets."""
    scheme, slashes, rest = url.partition("?")[0].partition("#")[0].partition("://")
    authority, slash, path = rest.partition("/")
    return shown(f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}")


def all_of(what: str, refusals: Sequence[Refusal], decisive: Refusal) -> Refusal:
    """One refusal for several hosts that were asked in turn: the kind of one, the words of all."""
    if len(refusals) == 1:
        return decisive
    told = "; ".join(str(one).removeprefix(f"{what}: ") for one in refusals)
    return type(decisive)(f"{what}: none of {len(refusals)} hosts gave it: {told}")
