"""Where errors cross the API, once: refusal to status on the way out, and back on the way in.

A Refusal becomes the code in `CODES` and keeps its text. Any other exception is a fault: the
caller learns INTERNAL and nothing else, the text stays in our log. A client of ours gets the
Refusal back from the code; codes that no Refusal means arrive as `CallFailed`.

**Invariant:** every Refusal subclass has its code; a test walks them all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from ..actors.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    Unknown,
)

R = TypeVar("R", bound=Refusal)

_DETAILS = "status_details"


class Code(IntEnum):
    """The status codes of gRPC, which ttrpc shares."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


CODES: Mapping[type[Refusal], Code] = {
    Cancelled: Code.CANCELLED,
    Unknown: Code.UNKNOWN,
    InvalidArgument: Code.INVALID_ARGUMENT,
    DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    NotFound: Code.NOT_FOUND,
    AlreadyExists: Code.ALREADY_EXISTS,
    PermissionDenied: Code.PERMISSION_DENIED,
    ResourceExhausted: Code.RESOURCE_EXHAUSTED,
    FailedPrecondition: Code.FAILED_PRECONDITION,
    Aborted: Code.ABORTED,
    OutOfRange: Code.OUT_OF_RANGE,
    Unimplemented: Code.UNIMPLEMENTED,
    Unavailable: Code.UNAVAILABLE,
    DataLoss: Code.DATA_LOSS,
    # The base class says only that the answer is no.
    Refusal: Code.UNKNOWN,
}

REFUSALS: Mapping[Code, type[Refusal]] = {
    code: refusal for refusal, code in CODES.items() if refusal is not Refusal
}


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended. `details` are further messages about it, each packed as an Any."""

    code: Code
    message: str = ""
    details: Sequence[AnyMessage] = ()


OK = Status(Code.OK)
FAULT = Status(Code.INTERNAL, "internal error")


class CallFailed(Exception):
    """A call ended with a status that is no Refusal: a fault of the other side, or of the wire."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code.name}: {status.message}")
        self.status = status


def internal(message: str) -> CallFailed:
    """The wire itself was wrong: what arrived is no message, or none arrived."""
    return CallFailed(Status(Code.INTERNAL, message))


def with_details(refusal: R, *messages: Message) -> R:
    """Attach messages that travel beside the refusal's text; returns the same refusal."""
    details = list(details_of(refusal))
    for message in messages:
        packed = AnyMessage()
        packed.Pack(message)
        details.append(packed)
    refusal.__dict__[_DETAILS] = tuple(details)
    return refusal


def details_of(refusal: Refusal) -> Sequence[AnyMessage]:
    """What `with_details` attached, or what arrived with the status."""
    details: tuple[AnyMessage, ...] = refusal.__dict__.get(_DETAILS, ())
    return details


def code_of(refusal: type[Refusal]) -> Code:
    """The code of the nearest class in the table: a subclass means what its base means."""
    return next(CODES[base] for base in refusal.__mro__ if base in CODES)


def status_of(error: BaseException) -> Status:
    """The status that tells a caller of this error; FAULT, and no word more, for a fault."""
    match error:
        case Refusal():
            return Status(code_of(type(error)), str(error), details_of(error))
        case CallFailed():
            return error.status
        case BaseExceptionGroup(exceptions=[only]):  # a nursery in a handler wraps what it raises
            return status_of(only)
        case _:
            return FAULT


def error_of(status: Status) -> Refusal | CallFailed:
    """The exception that means this status; what `status_of` would turn into it again."""
    assert status.code is not Code.OK
    refusal = REFUSALS.get(status.code)
    if refusal is None:
        return CallFailed(status)
    error = refusal(status.message)
    error.__dict__[_DETAILS] = tuple(status.details)
    return error


def code_from_number(number: int) -> Code:
    """A number off the wire; what gRPC does not define is UNKNOWN."""
    try:
        return Code(number)
    except ValueError:
        return Code.UNKNOWN
