"""What is a registry's alone is shown to nobody else: by redirects, by uploads, or in errors."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from clients import Giver, blob, fetched, opened_registry
from loopback import Answer, Seen, in_turn, loopback, manifest, told
from servers import certify

from holdfast.actors.errors import PermissionDenied, Refusal, Unavailable, Unknown
from holdfast.storage.registry.auth import Credentials
from holdfast.storage.registry.errors import place, said_in, shown

RAW = os.urandom(10_000)
SECRET = "open-sesame"
ALICE = Credentials(username="alice", secret=SECRET)
PRIVATE = {"authorization", "x-key", "x-client", "cookie", "referer"}
PUBLIC = {"host", "user-agent", "accept", "accept-encoding", "connection", "range"}


def configured(folder: Path, authority: str, more: str = "", scheme: str = "http") -> Path:
    """A folder that sends a header with each request to a host."""
    own = folder / authority
    own.mkdir(parents=True)
    (own / "hosts.toml").write_text(
        f'server = "{scheme}://{authority}"\n{more}\n[header]\nx-key = "{SECRET}"\n'
    )
    return folder


def demanding(seen: Seen, good: Answer) -> Answer:
    """Lets in who shows a password."""
    if "authorization" in seen.headers:
        return good
    return told(401, "UNAUTHORIZED", "who are you?", WWW_Authenticate='Basic realm="x"')


async def test_a_redirect_elsewhere_carries_nothing_private(tmp_path: Path) -> None:
    with loopback(in_turn(Answer(206, RAW[5:], {"Content-Range": "bytes 5-9999/10000"}))) as other:
        there = Answer(307, headers={"Location": f"{other.url}/data?sig=1", "Set-Cookie": "a=b"})
        with loopback(lambda seen: demanding(seen, there)) as server:
            folders = [configured(tmp_path, server.authority)]
            async with opened_registry(
                f"{server.authority}/tool:1",
                folders=folders,
                ask=Giver(ALICE),
                headers={"X-Client": SECRET},
            ) as client:
                for _ in range(2):
                    assert await fetched(client, blob(RAW), 5) == RAW[5:]
            first, second, third = server.seen
            # What is asked to be kept, and shown again, is not.
            assert "cookie" not in third.headers
            assert first.headers["x-key"] == first.headers["x-client"] == SECRET
            assert second.headers["authorization"] == ALICE.basic()
        for seen in other.seen:
            assert seen.headers.keys() <= PUBLIC
        assert seen.headers["range"] == "bytes=5-"
        assert seen.query == {"sig": ["1"]}


async def test_what_a_stranger_demands_is_not_answered() -> None:
    """A redirect leads to who asks for a token of its own token server."""

    def demand(seen: Seen) -> Answer:
        realm = f'Bearer realm="http://{seen.headers["host"]}/token"'
        return told(401, "UNAUTHORIZED", "show me", WWW_Authenticate=realm)

    with loopback(demand) as other:
        there = Answer(307, headers={"Location": f"{other.url}/data"})

        def answer(seen: Seen) -> Answer:
            return demanding(seen, there if "/blobs/" in seen.path else manifest())

        with loopback(answer) as server:
            async with opened_registry(f"{server.authority}/tool:1", ask=Giver(ALICE)) as client:
                await client.resolve()
                with pytest.raises(PermissionDenied, match=f"{other.authority}/data.*show me"):
                    await fetched(client, blob(RAW))
        assert [one.path for one in other.seen] == ["/data"]


async def test_what_was_dropped_on_the_way_is_not_shown_when_the_way_leads_back() -> None:
    with loopback(lambda seen: Answer(302, headers={"Location": f"{home[0]}/back"})) as other:
        home: list[str] = []

        def answer(seen: Seen) -> Answer:
            if seen.path == "/back":
                return Answer(200, RAW)
            return demanding(seen, Answer(302, headers={"Location": f"{other.url}/away"}))

        with loopback(answer) as server:
            home.append(server.url)
            async with opened_registry(f"{server.authority}/tool:1", ask=Giver(ALICE)) as client:
                assert await fetched(client, blob(RAW)) == RAW
            assert server.seen[-1].path == "/back"
            assert not server.seen[-1].headers.keys() & PRIVATE


async def test_a_redirect_at_home_keeps_what_is_shown() -> None:
    def answer(seen: Seen) -> Answer:
        good = Answer(200, RAW) if seen.path == "/data" else None
        return demanding(seen, good or Answer(301, headers={"Location": "/data"}))

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(ALICE)) as client:
            assert await fetched(client, blob(RAW)) == RAW


async def test_redirects_have_an_end() -> None:
    with loopback(in_turn(Answer(302, headers={"Location": "/again"}))) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(Unavailable, match="more than 10 redirects"):
                await fetched(client, blob(RAW))
        assert len(server.seen) == 11


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://localhost/x",
        "http://[::1",
        "http://:80",
        "gopher:x",
        "http://" + "a" * 9000,
    ],
)
async def test_a_redirect_leads_to_addresses_of_http_alone(location: str) -> None:
    with loopback(in_turn(Answer(302, headers={"Location": location}))) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(Unavailable, match="leads to"):
                await fetched(client, blob(RAW))
        assert len(server.seen) == 1


async def test_a_certificate_is_shown_to_its_registry_alone_and_nothing_leads_from_https(
    tmp_path: Path,
) -> None:
    pair = tmp_path / "cert.pem", tmp_path / "key.pem"
    ours = tmp_path / "ours.cert", tmp_path / "ours.key"
    certify(*pair)
    certify(*ours, name="us")
    more = f'ca = "{pair[0]}"\nclient = [["{ours[0]}", "{ours[1]}"]]'
    to_plain = Answer(302, headers={"Location": "http://localhost:9/x?sig=hidden"})
    with loopback(in_turn(Answer(200, RAW)), pair=pair, client_ca=ours[0]) as other:
        to_other = Answer(302, headers={"Location": f"{other.url}/data"})
        with loopback(in_turn(to_other, to_plain), pair=pair, client_ca=ours[0]) as server:
            folders = [configured(tmp_path / "hosts", server.authority, more, "https")]
            async with opened_registry(f"{server.authority}/tool:1", folders=folders) as client:
                # The authority that we trust for the registry counts for where it leads.
                assert await fetched(client, blob(RAW)) == RAW
                with pytest.raises(
                    Unavailable, match="leads from https to http://localhost:9/x"
                ) as e:
                    await fetched(client, blob(RAW))
                assert "hidden" not in str(e.value)
            assert [one.certificate for one in server.seen] == [True, True]
        assert [one.certificate for one in other.seen] == [False]
        assert not other.seen[0].headers.keys() & PRIVATE


async def test_an_upload_that_goes_on_elsewhere_carries_nothing_private(tmp_path: Path) -> None:
    with loopback(lambda seen: Answer(202 if seen.method == "PATCH" else 201)) as other:
        elsewhere = Answer(202, headers={"Location": f"{other.url}/up?sig=1"})
        with loopback(lambda seen: demanding(seen, elsewhere)) as server:
            folders = [configured(tmp_path, server.authority)]
            async with opened_registry(
                f"{server.authority}/tool:1", folders=folders, ask=Giver(ALICE)
            ) as client:
                upload = await client.begin_upload(blob(RAW))
                assert upload is not None
                upload = await client.upload_part(upload, RAW[:5000])
                await client.finish_upload(upload, blob(RAW), RAW[5000:])
            assert {one.method for one in server.seen} == {"POST"}
        assert b"".join(one.body for one in other.seen) == RAW
        for seen in other.seen:
            assert not seen.headers.keys() & PRIVATE
        assert other.seen[-1].query["digest"] == [blob(RAW).digest]


async def test_an_upload_does_not_leave_https(tmp_path: Path) -> None:
    pair = tmp_path / "cert.pem", tmp_path / "key.pem"
    certify(*pair)
    plain = Answer(202, headers={"Location": "http://localhost:9/up"})
    with loopback(in_turn(plain, Answer(202)), pair=pair) as server:
        folders = [configured(tmp_path / "h", server.authority, f'ca = "{pair[0]}"', "https")]
        async with opened_registry(f"{server.authority}/tool:1", folders=folders) as client:
            with pytest.raises(Unknown, match="from https to http://localhost:9/up"):
                await client.begin_upload(blob(RAW))
            with pytest.raises(Unknown, match="named no place"):
                await client.begin_upload(blob(RAW))


async def test_a_write_is_redirected_only_where_it_stays_a_write() -> None:
    def answer(seen: Seen) -> Answer:
        if seen.path.endswith("/manifests/1"):
            return Answer(307, headers={"Location": "/there"})
        if seen.path.endswith("/manifests/2"):
            return Answer(302, headers={"Location": "/there"})
        return Answer(201)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.put_manifest(blob(RAW), RAW, "1")
            assert [(one.method, one.body) for one in server.seen] == [("PUT", RAW), ("PUT", RAW)]
            with pytest.raises(Unknown, match="302"):
                await client.put_manifest(blob(RAW), RAW, "2")


async def test_a_secret_is_in_no_error() -> None:
    """Whatever goes wrong, and whatever the registry says of what it was shown."""
    leaks = [
        told(500, "BAD", f"at http://x/y?token={SECRET}"),
        told(403, "DENIED", "no"),
        Answer(200, b"{", {"Location": f"http://u:{SECRET}@localhost:9/x?key={SECRET}"}),
        Answer(302, headers={"Location": f"http://u:{SECRET}@localhost:9/x?key={SECRET}"}),
        Answer(cut=0),
    ]
    for leak in leaks:
        with loopback(lambda seen, leak=leak: demanding(seen, leak)) as server:  # type: ignore[misc]
            async with opened_registry(
                f"{server.authority}/tool:1", ask=Giver(ALICE), headers={"X-Client": SECRET}
            ) as client:
                with pytest.raises(Refusal) as said:
                    await client.resolve()
                assert SECRET not in str(said.value)
                assert ALICE.basic() not in str(said.value)
    with loopback(in_turn(manifest())) as server:
        async with opened_registry(
            f"{server.authority}/tool:1", headers={"X-Client": f"{SECRET}\r\nX-More: 1"}
        ) as client:
            with pytest.raises(Unavailable, match="a header or an address that HTTP") as said_:
                await client.resolve()
            assert SECRET not in str(said_.value)
    header = Credentials(header=f"Bearer {SECRET}\r\nX: y")
    with loopback(lambda seen: demanding(seen, manifest())) as server:
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(header)) as client:
            with pytest.raises(Refusal, match="none of HTTP's") as said:
                await client.resolve()
            assert SECRET not in str(said.value)
    assert SECRET not in repr([header, ALICE])


async def test_a_refusal_says_what_the_registry_says_and_what_to_do() -> None:
    denied = told(403, "DENIED", "requested access to the resource is denied")
    with loopback(in_turn(denied)) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(PermissionDenied) as said:
                await client.resolve()
            assert str(said.value) == (
                f"{server.authority}/tool:1: GET {server.url}/v2/tool/manifests/1: HTTP status 403:"
                " DENIED: requested access to the resource is denied: access denied, the"
                " repository does not exist or may require authorization that these credentials"
                " do not give"
            )


@pytest.mark.parametrize(
    ("raw", "content_type", "said"),
    [
        (b'{"errors":[{"code":"A","message":"b"},{"code":"C"}]}', "application/json", "A: b; C"),
        (b'{"error":"invalid_grant","error_description":"no"}', "", "invalid_grant: no"),
        (b'{"details":"incorrect"}', "application/json", "incorrect"),
        (b'{"errors":"x","message":"y"}', "application/json", "y"),
        (b'{"errors":[1,null,{"code":2}]}', "application/json", ""),
        (b"<html><body>proxy</body>", "text/html", ""),
        (b"<!doctype html>", "", ""),
        (
            b"not\x1b[31m here\r\nX: y\xff",
            "text/plain",
            "not [31m here X: y\N{REPLACEMENT CHARACTER}",
        ),
        (b"[" * 100_000, "application/json", "[" * 300),
        (b"", "", ""),
    ],
)
def test_the_words_of_an_answer_are_told_in_one_line(
    raw: bytes, content_type: str, said: str
) -> None:
    assert said_in(raw, content_type) == said


def test_an_address_is_told_without_what_may_be_secret() -> None:
    assert place("https://u:p@h:1/v2/x?token=y#z") == "https://h:1/v2/x"
    assert place("https://h/a@b?c") == "https://h/a@b"
    assert shown("see https://h/x?sig=y and http://i#z.") == "see https://h/x and http://i"
    assert len(shown("x" * 1000)) == 300
