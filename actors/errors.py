"""Refusals: answers that say no.

A refusal is told to the caller and restarts nothing; every other exception in an actor is a
fault, ends the actor and reaches its supervisor. Each class here is one gRPC status code
(`api/status.py` holds the table), so that a refusal means the same in every room.

The text says what was asked and what stood in the way: `task "web": not found`.
"""


class Refusal(Exception):
    """The base of every answer that says no."""


class Cancelled(Refusal):
    """The caller withdrew the request."""


class Unknown(Refusal):
    """Something outside failed in a way that no other class describes."""


class InvalidArgument(Refusal):
    """The request is wrong whatever the state: a malformed name, an unknown field."""


class DeadlineExceeded(Refusal):
    """The work did not end in the time it had."""


class NotFound(Refusal):
    """What was asked for does not exist."""


class AlreadyExists(Refusal):
    """What was to be created exists."""


class PermissionDenied(Refusal):
    """The caller may not do this."""


class ResourceExhausted(Refusal):
    """A bound was reached: a full mailbox, a message too large, a full disk."""


class FailedPrecondition(Refusal):
    """The state forbids it: deleting a running task, a snapshot with children."""


class Aborted(Refusal):
    """A concurrent change won; the caller may begin anew."""


class OutOfRange(Refusal):
    """An offset or range lies outside the object."""


class Unimplemented(Refusal):
    """This host or build lacks the operation."""


class Unavailable(Refusal):
    """Not now: locked by another, or on its way; the caller may try again."""


class DataLoss(Refusal):
    """What is stored does not verify."""
