"""Asking again: after how long, and when no more.

What passes (429, 5xx, a connection that broke) is asked again after a pause that doubles, with
chance in it, so that many clients do not come back at once. Where the server says when to come
back, that is heeded; where it names a time beyond our patience, we give up at once and say so.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .errors import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a request is sent, and how long all of that may take."""

    attempts_max: int = 6
    first_s: float = 0.25
    """The pause after the first failure, at most; it doubles each time."""
    pause_max_s: float = 10.0
    within_s: float = 120.0
    """When so much time has gone since the first attempt, or would have, there is no other."""


def pause_before_next(
    patience: Patience, failure: Failure, attempts: int, spent_s: float
) -> float | None:
    """How long to wait after so many attempts and seconds; None: the failure stands."""
    if not failure.passing or attempts >= patience.attempts_max:
        return None
    longest = min(patience.pause_max_s, patience.first_s * 2.0 ** (attempts - 1))
    # At least a half of it: chance alone may say "at once" several times in a row.
    pause = longest * random.uniform(0.5, 1.0)
    if failure.retry_after_s is not None:
        pause = max(failure.retry_after_s, pause)
    return pause if spent_s + pause <= patience.within_s else None


def retry_after_of(header: str, now: datetime) -> float | None:
    """The seconds that a Retry-After asks for, from a number or a date; None: nothing readable."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    when = date_of(text)
    return None if when is None else max(0.0, (when - now).total_seconds())


def date_of(text: str) -> datetime | None:
    """A date as HTTP writes it; None: it is none."""
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
