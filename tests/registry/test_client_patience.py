"""The client asks again what may pass, and not what does not, nor for ever."""

import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from clients import blob, fetched, opened_registry, pieces_of
from loopback import MANIFEST, Answer, Seen, in_turn, loopback, manifest, nobody, told

from holdfast.actors.errors import (
    Aborted,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from holdfast.storage.descriptor import OCI_MANIFEST, describe
from holdfast.storage.registry.errors import Failure
from holdfast.storage.registry.retry import Patience, pause_before_next, retry_after_of

BUSY = told(503, "UNAVAILABLE", "busy")
MANY = told(429, "TOOMANYREQUESTS", "slow down")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_what_passes_is_asked_again(status: int) -> None:
    passing = told(status, "BUSY", "later")
    with loopback(in_turn(passing, passing, manifest())) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            assert (await client.resolve()).size == len(MANIFEST)
        assert len(server.seen) == 3


@pytest.mark.parametrize(
    ("status", "refusal"), [(400, Unknown), (403, PermissionDenied), (404, NotFound)]
)
async def test_what_stands_is_asked_once(status: int, refusal: type[Exception]) -> None:
    with loopback(in_turn(told(status, "NO", "never"))) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(refusal, match="NO: never"):
                await fetched(client, blob(b"x"))
        assert len(server.seen) == 1


async def test_a_connection_that_breaks_before_an_answer_is_made_again() -> None:
    with loopback(in_turn(Answer(cut=0), manifest())) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
        assert [one.method for one in server.seen] == ["HEAD", "HEAD"]


async def test_a_server_says_when_to_come_back() -> None:
    later = told(429, "TOOMANYREQUESTS", "slow down", Retry_After="1")
    with loopback(in_turn(later, manifest())) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            began = trio.current_time()
            await client.resolve()
            assert trio.current_time() - began >= 1


async def test_a_server_says_it_as_a_date() -> None:
    when = datetime.now(UTC) + timedelta(seconds=3)
    later = told(503, "BUSY", "later", Retry_After=format_datetime(when, usegmt=True))
    with loopback(in_turn(later, manifest())) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
            assert datetime.now(UTC) >= when.replace(microsecond=0)


async def test_who_is_to_come_back_in_an_hour_is_told_so_at_once() -> None:
    later = told(429, "TOOMANYREQUESTS", "limit", Retry_After="3600")
    with loopback(in_turn(later)) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(
                ResourceExhausted, match="limit: too many requests: retry after 3600 s"
            ):
                await fetched(client, blob(b"x"))
        assert len(server.seen) == 1


async def test_there_is_an_end_to_asking() -> None:
    with loopback(in_turn(BUSY)) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(Unavailable, match="HTTP status 503: UNAVAILABLE: busy"):
                await fetched(client, blob(b"x"))
        assert len(server.seen) == Patience().attempts_max
    async with opened_registry(f"{nobody()}/tool:1") as client:
        with pytest.raises(Unavailable, match="no connection"):
            await client.resolve()


async def test_a_body_is_sent_again_only_where_it_is_still_there() -> None:
    raw = b"x" * 1000

    def answer(seen: Seen) -> Answer:
        if seen.method == "POST":
            return Answer(202, headers={"Location": "/upload"})
        return BUSY if len(server.seen) < 4 else Answer(201)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(Unavailable):
                await client.put_blob(blob(raw), pieces_of(raw))
            assert [one.method for one in server.seen] == ["POST", "PUT"]
            await client.put_manifest(describe(MANIFEST, OCI_MANIFEST), MANIFEST, "1")
            assert [one.body for one in server.seen[2:]] == [MANIFEST, MANIFEST]


async def test_a_part_whose_fate_is_unknown_is_settled_by_asking() -> None:
    """The registry took the whole of the first part, a half of the second, none of the third."""
    raw = bytes(range(256)) * 40
    stored = bytearray()
    taken = iter([4000, 2000, 0])

    def answer(seen: Seen) -> Answer:
        place = {"Location": f"/upload?at={len(stored)}"}
        if seen.method == "POST":
            return Answer(202, headers=place)
        if seen.method == "GET":
            return Answer(204, headers={**place, "Range": f"0-{max(0, len(stored) - 1)}"})
        if seen.method == "PUT":
            stored.extend(seen.body)
            return Answer(201)
        begins = int(seen.headers["content-range"].partition("-")[0])
        if begins != len(stored):
            return told(416, "RANGE_INVALID", f"not {begins}")
        count = next(taken, None)
        stored.extend(seen.body[:count])
        place = {"Location": f"/upload?at={len(stored)}", "Range": f"0-{len(stored) - 1}"}
        return Answer(202, headers=place) if count is None else Answer(cut=0)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            upload = await client.begin_upload(blob(raw))
            assert upload is not None
            for begins in (0, 4000, 8000):
                upload = await client.upload_part(upload, raw[begins : begins + 4000])
            await client.finish_upload(upload, blob(raw))
        assert bytes(stored) == raw
        # What had arrived was not sent again.
        sent = [one.headers["content-range"] for one in server.seen if one.method == "PATCH"]
        assert sent == ["0-3999", "4000-7999", "6000-7999", "6000-7999", "8000-10239"]


async def test_a_part_waits_as_long_as_the_server_says() -> None:
    def answer(seen: Seen) -> Answer:
        place = {"Location": "/upload"}
        match seen.method:
            case "POST":
                return Answer(202, headers=place)
            case "GET":
                return Answer(204, headers={**place, "Range": "0-0"})
            case _:
                busy = told(429, "SLOW", "down", Retry_After="1")
                return busy if len(server.seen) == 2 else Answer(202, headers=place)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            upload = await client.begin_upload(blob(b"x" * 10))
            assert upload is not None
            began = trio.current_time()
            upload = await client.upload_part(upload, b"x" * 10)
            assert trio.current_time() - began >= 1
            assert upload.offset == 10
        assert [one.method for one in server.seen] == ["POST", "PATCH", "GET", "PATCH"]


@pytest.mark.parametrize(
    ("patch", "status", "refusal"),
    [
        # It is never free; it forgot the upload; it has more than was sent; it does not say.
        (BUSY, Answer(204), Unavailable),
        (told(404, "UNKNOWN", "gone"), Answer(204), Aborted),
        (BUSY, told(404, "UNKNOWN", "gone"), Aborted),
        (BUSY, Answer(204, headers={"Range": "0-99"}), Aborted),
        (BUSY, told(400, "UNSUPPORTED", "no"), Aborted),
        (Answer(202, headers={"Range": "0-99"}), Answer(204, headers={"Range": "0-99"}), Aborted),
        (told(403, "DENIED", "no"), Answer(204), PermissionDenied),
    ],
)
async def test_a_part_that_does_not_arrive_ends_in_a_refusal(
    patch: Answer, status: Answer, refusal: type[Exception]
) -> None:
    said = {"POST": Answer(202, headers={"Location": "/upload"}), "PATCH": patch, "GET": status}
    with loopback(lambda seen: said[seen.method]) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            upload = await client.begin_upload(blob(b"x" * 10))
            assert upload is not None
            with pytest.raises(refusal):
                await client.upload_part(upload, b"x" * 10)
        assert len(server.seen) < 20


async def test_an_end_that_broke_off_goes_on_with_what_is_missing() -> None:
    raw = bytes(range(200))
    stored = bytearray()

    def answer(seen: Seen) -> Answer:
        place = {"Location": "/upload", "Range": f"0-{max(0, len(stored) - 1)}"}
        match seen.method:
            case "HEAD":
                return told(404, "UNKNOWN", "not yet")
            case "PUT" if seen.body:
                stored.extend(seen.body[:150])
                return Answer(cut=0)
            case "PUT":
                digest = {"Docker-Content-Digest": seen.query["digest"][0]}
                return Answer(201, headers=digest)
            case "PATCH":
                stored.extend(seen.body)
                return Answer(202, headers={**place, "Range": "0-199"})
            case _:
                return Answer(202, headers=place)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            upload = await client.begin_upload(blob(raw))
            assert upload is not None
            await client.finish_upload(upload, blob(raw), raw)
        assert bytes(stored) == raw
        assert [one.method for one in server.seen if one.body] == ["PUT", "PATCH"]


async def test_a_registry_that_has_stored_something_else_is_not_believed() -> None:
    def answer(seen: Seen) -> Answer:
        other = {"Docker-Content-Digest": blob(b"other").digest}
        return (
            Answer(202, headers={"Location": "/u"})
            if seen.method == "POST"
            else Answer(201, headers=other)
        )

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(FailedPrecondition, match="the registry has sha256:"):
                await client.put_blob(blob(b"x"), pieces_of(b"x"))


async def test_a_mount_that_is_not_allowed_becomes_an_upload() -> None:
    def answer(seen: Seen) -> Answer:
        return (
            told(403, "DENIED", "no")
            if "mount" in seen.query
            else Answer(202, headers={"Location": "/u"})
        )

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            assert await client.begin_upload(blob(b"x"), "other") is not None


async def test_an_end_whose_answer_was_lost_is_found_to_be_one() -> None:
    raw = b"x" * 1000

    def answer(seen: Seen) -> Answer:
        match seen.method:
            case "POST":
                return Answer(202, headers={"Location": "/upload"})
            case "PUT":
                return Answer(cut=0) if len(server.seen) == 2 else told(404, "UNKNOWN", "gone")
            case _:
                return Answer(200)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            upload = await client.begin_upload(blob(raw))
            assert upload is not None
            await client.finish_upload(upload, blob(raw), raw)
        assert [one.method for one in server.seen] == ["POST", "PUT", "HEAD"]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 30, 999_999_999.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Wed, 31 Dec 2025 23:59:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 00:01:00", 60.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("Thu, 01 Jan 2026 00:01:00 +99999999999999999999", None),
        ("Thu, 01 Jan 99999999999999999999 00:01:00 GMT", None),
        ("Thu, 01 Jan 2026 00:01:00 -9999", None),
    ],
)
def test_retry_after_is_read_as_http_has_it(header: str, seconds: float | None) -> None:
    assert retry_after_of(header, NOW) == seconds


@given(st.text(max_size=60))
def test_no_retry_after_is_a_fault(header: str) -> None:
    seconds = retry_after_of(header, NOW)
    assert seconds is None or seconds >= 0


@given(
    attempts=st.integers(1, 40),
    spent=st.floats(0, 1000),
    after=st.none() | st.floats(0, 1e6),
    passing=st.booleans(),
)
def test_a_pause_has_its_bounds(
    attempts: int, spent: float, after: float | None, passing: bool
) -> None:
    patience = Patience()
    failure = Failure(Unavailable("no"), passing, 503, after)
    pause = pause_before_next(patience, failure, attempts, spent)
    if pause is None:
        longest = max(patience.pause_max_s, after or 0)
        assert (
            not passing or attempts >= patience.attempts_max or spent + longest > patience.within_s
        )
        return
    assert passing
    assert attempts < patience.attempts_max
    assert spent + pause <= patience.within_s
    assert pause >= (after or 0)
    assert pause >= patience.first_s / 2
