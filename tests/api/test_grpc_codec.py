"""Bytes and headers of gRPC, without a socket."""

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import ResourceExhausted, Unimplemented
from holdfast.api.grpc.codec import (
    MessageBuffer,
    decode_binary,
    decode_metadata,
    encode_metadata,
    format_timeout,
    parse_status,
    parse_timeout,
    status_trailers,
)
from holdfast.api.status import CallFailed, Code, Status


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


@given(st.data(), st.lists(st.binary(max_size=40), max_size=6))
def test_messages_come_out_however_their_bytes_are_cut(
    data: st.DataObject, messages: list[bytes]
) -> None:
    buffer = MessageBuffer(100)
    pieces = data.draw(cut(b"".join(map(framed, messages))))
    assert [m for piece in pieces for m in buffer.feed(piece)] == messages
    assert buffer.held_bytes == 0


def test_a_message_too_large_is_refused_by_its_prefix() -> None:
    with pytest.raises(ResourceExhausted, match=r"11 vs\. 10"):
        MessageBuffer(10).feed(framed(bytes(11))[:5])
    with pytest.raises(Unimplemented):
        MessageBuffer(10).feed(b"\1\0\0\0\0")


@given(st.floats(0, 3.6e8))
def test_a_timeout_survives_the_way_and_is_never_shortened(timeout_s: float) -> None:
    there = format_timeout(timeout_s)
    assert len(there) <= 9
    back_s = parse_timeout(there)
    assert timeout_s * (1 - 1e-9) <= back_s <= timeout_s * 1.0001 + 1e-9


def test_timeouts_at_the_ends() -> None:
    assert parse_timeout(b"2H") == 7200
    assert parse_timeout(b"3M") == 180
    assert format_timeout(1e15) == b"99999999H"
    assert format_timeout(-1) == b"0n"


@given(st.sampled_from([c for c in Code if c]), st.text(), st.booleans())
def test_a_status_survives_its_trailers(code: Code, text: str, with_detail: bool) -> None:
    details = (AnyMessage(type_url="a/b", value=b"\xff"),) if with_detail else ()
    trailers = dict(status_trailers(Status(code, text, details)))
    message = trailers.get(b"grpc-message", b"")
    assert all(0x20 <= byte < 0x7F for byte in message)
    assert message == message.strip()
    assert parse_status(trailers) == Status(code, text, details)


@pytest.mark.parametrize("text", [" ", "  ", "ends with a space: ", " begins with one"])
def test_a_status_may_have_spaces_at_its_ends(text: str) -> None:
    trailers = dict(status_trailers(Status(Code.UNKNOWN, text)))
    assert trailers[b"grpc-message"] == trailers[b"grpc-message"].strip()
    assert parse_status(trailers) == Status(Code.UNKNOWN, text)


def test_odd_statuses_are_understood_as_far_as_they_go() -> None:
    assert parse_status({}) is None
    assert parse_status({b"grpc-status": b"x"}) == Status(Code.UNKNOWN)
    broken = {b"grpc-status": b"5", b"grpc-message": b"%zz%", b"grpc-status-details-bin": b"a"}
    assert parse_status(broken) == Status(Code.NOT_FOUND, "%zz%")


def test_metadata_survives_the_way_and_reserved_headers_are_none_of_it() -> None:
    headers = encode_metadata({"A-b": "c", "x-bin": b"\0\xff", "y-bin": "text"})
    more = [(b":path", b"/"), (b"grpc-timeout", b"1S"), (b"te", b"trailers"), (b"a-b", b"second")]
    assert decode_metadata(headers + more) == {"a-b": "c", "x-bin": b"\0\xff", "y-bin": b"text"}
    assert decode_binary(b"AP8=") == b"\0\xff"
    with pytest.raises(CallFailed):
        decode_binary(b"a")
    with pytest.raises(AssertionError):
        encode_metadata({"x": b"binary"})
