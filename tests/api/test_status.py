"""Refusals cross the API by one table, faults keep their text."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.actors import errors
from holdfast.actors.errors import NotFound, Refusal, Unavailable
from holdfast.api.status import (
    CODES,
    FAULT,
    REFUSALS,
    CallFailed,
    Code,
    Status,
    code_from_number,
    details_of,
    error_of,
    status_of,
    with_details,
)


def subclasses(cls: type[Refusal]) -> set[type[Refusal]]:
    return {cls}.union(*(subclasses(sub) for sub in cls.__subclasses__()))


def test_every_refusal_has_its_code_in_the_table() -> None:
    named = {value for value in vars(errors).values() if isinstance(value, type)}
    assert {cls for cls in named if issubclass(cls, Refusal)} == set(CODES)
    for cls in subclasses(Refusal):
        nearest = next(base for base in cls.__mro__ if base in CODES)
        assert status_of(cls.__new__(cls)).code is CODES[nearest]


def test_no_two_refusals_share_a_code_but_the_base() -> None:
    codes = [code for refusal, code in CODES.items() if refusal is not Refusal]
    assert len(codes) == len(set(codes))
    assert Code.OK not in codes
    # What only a server's fault or its gatekeeper may say.
    assert set(Code) - set(codes) == {Code.OK, Code.INTERNAL, Code.UNAUTHENTICATED}


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_a_status_survives_the_way_there_and_back(code: Code) -> None:
    status = Status(code, "text", ())
    error = error_of(status)
    assert isinstance(error, REFUSALS.get(code, CallFailed))
    assert status_of(error) == status


def test_a_subclass_means_what_its_base_means() -> None:
    class Gone(NotFound):
        pass

    assert status_of(Gone("x")) == Status(Code.NOT_FOUND, "x")


def test_a_fault_tells_nothing() -> None:
    assert status_of(RuntimeError("secret")) is FAULT
    assert status_of(ExceptionGroup("two", [NotFound("a"), NotFound("b")])) is FAULT
    assert "secret" not in FAULT.message


def test_a_single_refusal_is_found_in_the_groups_of_nurseries() -> None:
    group = ExceptionGroup("outer", [ExceptionGroup("inner", [Unavailable("later")])])
    assert status_of(group) == Status(Code.UNAVAILABLE, "later")


def test_details_are_added_and_survive_the_way() -> None:
    refusal = with_details(with_details(NotFound("x"), Timestamp(seconds=1)), Timestamp(nanos=2))
    there = status_of(refusal)
    back = error_of(there)
    assert isinstance(back, NotFound)
    seconds = Timestamp()
    assert details_of(back)[0].Unpack(seconds)
    assert seconds.seconds == 1
    assert len(details_of(back)) == 2


def test_a_number_that_grpc_does_not_know_is_unknown() -> None:
    assert code_from_number(5) is Code.NOT_FOUND
    assert code_from_number(99) is Code.UNKNOWN
