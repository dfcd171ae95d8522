"""What a registry demands is answered, renewed, and asked for no more often than it must be."""

import json
import sys
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from clients import Giver, blob, fetched, opened_registry, pieces_of
from loopback import Answer, Loopback, Seen, loopback, manifest, told
from servers import SECRET, USER, certify, registry

from holdfast.actors.errors import PermissionDenied, Unavailable, Unknown
from holdfast.storage.document import Document
from holdfast.storage.registry.auth import (
    Credentials,
    choose,
    merged,
    parse_challenges,
    showable,
)
from holdfast.storage.registry.tokens import LIFE_MIN_S, LIFE_S, life_of

ALICE = Credentials(username=USER, secret=SECRET)
GUESS = Credentials(username=USER, secret="guess")
REFRESH = Credentials(secret="refresh-1")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class House:
    """A registry that lets in who has one of its tokens, and its token server."""

    def __init__(self) -> None:
        self.valid: set[str] = set()
        self.given = 0
        self.extra: Mapping[str, object] = {}
        self.refused: Callable[[Seen], Answer | None] = lambda _: None
        self.realm = ""
        self.tokens: list[Seen] = []

    def answer(self, seen: Seen) -> Answer:
        """As the registry, or as the token server, by the path."""
        if seen.path == "/token":
            return self.token(seen)
        if seen.headers.get("authorization", "").removeprefix("Bearer ") in self.valid:
            return manifest()
        demand = f'Bearer realm="{self.realm}",service="house",scope="repository:tool:pull"'
        return told(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=demand)

    def token(self, seen: Seen) -> Answer:
        self.tokens.append(seen)
        if (refused := self.refused(seen)) is not None:
            return refused
        self.given += 1
        token = f"token-{self.given}"
        self.valid.add(token)
        return Answer(body=json.dumps({"token": token, **self.extra}).encode())

    def stands(self, server: Loopback) -> None:
        self.realm = f"{server.url}/token"

    def form(self, number: int) -> dict[str, list[str]]:
        """What the token server got by POST."""
        return urllib.parse.parse_qs(self.tokens[number].body.decode())


async def test_a_token_is_fetched_once_for_many_and_credentials_are_asked_for_once() -> None:
    house, giver = House(), Giver(ALICE)
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=giver) as client:
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(client.resolve)
    assert giver.asked == [server.authority]
    (seen,) = house.tokens
    assert seen.method == "GET"
    assert seen.headers["authorization"] == ALICE.basic()
    assert seen.query["scope"] == ["repository:tool:pull"]
    assert seen.query["service"] == ["house"]


async def test_without_credentials_an_anonymous_token_is_asked_for() -> None:
    house = House()
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
    assert "authorization" not in house.tokens[0].headers
    assert "account" not in house.tokens[0].query


async def test_a_token_is_renewed_before_it_expires() -> None:
    house = House()
    house.extra = {"expires_in": 1}
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
            await trio.sleep(1)
            await client.resolve()
        shown = [one.headers.get("authorization") for one in server.seen if one.method == "HEAD"]
    # The second request came with a new one, and was not sent back to fetch it.
    assert shown == [None, "Bearer token-1", "Bearer token-2"]


async def test_a_token_that_was_withdrawn_is_replaced_and_nobody_is_asked() -> None:
    house, giver = House(), Giver(ALICE)
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=giver) as client:
            for _ in range(4):
                await client.resolve()
                house.valid.clear()
    assert house.given == 4
    assert len(giver.asked) == 1


async def test_rejected_credentials_are_asked_for_once_more() -> None:
    house = House()
    house.refused = lambda seen: (
        None
        if seen.headers.get("authorization") == ALICE.basic()
        else told(401, "UNAUTHORIZED", "incorrect username or password")
    )
    with loopback(house.answer) as server:
        house.stands(server)
        corrected = Giver(GUESS, ALICE)
        async with opened_registry(f"{server.authority}/tool:1", ask=corrected) as client:
            await client.resolve()
        assert len(corrected.asked) == 2
        for wrong in (Giver(GUESS), Giver(GUESS, Credentials(username="bob", secret="x"))):
            async with opened_registry(f"{server.authority}/tool:1", ask=wrong) as client:
                with pytest.raises(PermissionDenied, match="401: UNAUTHORIZED: incorrect username"):
                    await client.resolve()
            assert len(wrong.asked) == 2


async def test_who_has_nothing_to_say_the_second_time_is_told_of_the_first() -> None:
    house, once = House(), Giver(GUESS, Credentials())
    house.refused = lambda _: told(401, "UNAUTHORIZED", "incorrect password")
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=once) as client:
            with pytest.raises(PermissionDenied, match="incorrect password"):
                await client.resolve()
    assert len(house.tokens) == 1


async def test_a_password_that_was_rejected_is_asked_for_once_more() -> None:
    def answer(seen: Seen) -> Answer:
        if seen.headers.get("authorization") == ALICE.basic():
            return manifest()
        return told(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="x"')

    with loopback(answer) as server:
        corrected, wrong = Giver(GUESS, ALICE), Giver(GUESS)
        async with opened_registry(f"{server.authority}/tool:1", ask=corrected) as client:
            await client.resolve()
            await client.resolve()
        assert len(corrected.asked) == 2
        async with opened_registry(f"{server.authority}/tool:1", ask=wrong) as client:
            with pytest.raises(PermissionDenied, match="HTTP status 401"):
                await client.resolve()
        assert len(wrong.asked) == 2


async def test_a_token_that_is_never_good_enough_ends_in_a_refusal() -> None:
    house, giver = House(), Giver(ALICE)
    house.valid = set()
    house.extra = {"token": "worthless"}
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=giver) as client:
            with pytest.raises(PermissionDenied, match="authentication required"):
                await fetched(client, blob(b"x"))
    assert len(giver.asked) == 2
    assert len(house.tokens) < 5


async def test_a_refresh_token_goes_by_post_and_a_new_one_takes_its_place() -> None:
    house = House()
    house.extra = {"refresh_token": "refresh-2"}
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(REFRESH)) as client:
            await client.resolve()
            house.valid.clear()
            await client.resolve()
    assert [one.method for one in house.tokens] == ["POST", "POST"]
    assert house.form(0) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh-1"],
        "client_id": ["holdfast"],
        "service": ["house"],
        "scope": ["repository:tool:pull"],
    }
    assert house.form(1)["refresh_token"] == ["refresh-2"]
    assert all("authorization" not in one.headers for one in house.tokens)


async def test_a_refresh_token_that_has_had_its_time_gives_way_to_the_password() -> None:
    house = House()
    house.extra = {"refresh_token": "short-lived"}
    house.refused = lambda seen: (
        told(400, "invalid_grant", "expired") if seen.method == "POST" else None
    )
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(ALICE)) as client:
            await client.resolve()
            house.valid.clear()
            await client.resolve()
    assert [one.method for one in house.tokens] == ["GET", "POST", "GET"]


@pytest.mark.parametrize(
    ("credentials", "unknown", "methods"),
    [(ALICE, "GET", ["GET", "POST"]), (REFRESH, "POST", ["POST", "GET"])],
)
@pytest.mark.parametrize("status", [404, 405])
async def test_a_token_server_that_knows_one_way_is_asked_by_that_way(
    credentials: Credentials, unknown: str, methods: Sequence[str], status: int
) -> None:
    house = House()
    house.refused = lambda seen: (
        told(status, "UNSUPPORTED", "no") if seen.method == unknown else None
    )
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(credentials)) as client:
            await client.resolve()
    assert [one.method for one in house.tokens] == methods
    if credentials is ALICE:
        assert house.form(1)["grant_type"] == ["password"]
        assert house.form(1)["password"] == [SECRET]
    else:
        assert house.tokens[1].headers["authorization"] == REFRESH.basic()


async def test_a_token_server_that_is_busy_is_asked_again() -> None:
    house = House()
    left = [told(503, "BUSY", "later"), told(429, "SLOW", "down", Retry_After="0")]
    house.refused = lambda _: left.pop() if left else None
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
        assert len(house.tokens) == 3
        house.refused = lambda _: told(503, "BUSY", "later")
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(
                Unavailable, match=r"token of http://localhost:\d+/token: HTTP .*503"
            ):
                await client.resolve()


async def test_a_token_server_elsewhere_sees_credentials_and_no_headers_of_the_registry(
    tmp_path: Path,
) -> None:
    house = House()
    with loopback(house.answer) as tokens, loopback(house.answer) as server:
        house.stands(tokens)
        own = tmp_path / server.authority
        own.mkdir()
        (own / "hosts.toml").write_text(
            f'server = "http://{server.authority}"\n[header]\nx-key = "secret"'
        )
        async with opened_registry(
            f"{server.authority}/tool:1",
            folders=[tmp_path],
            ask=Giver(ALICE),
            headers={"X-Client": "secret"},
        ) as client:
            await client.resolve()
        (seen,) = tokens.seen
        assert not {"x-key", "x-client"} & seen.headers.keys()
        assert {"x-key", "x-client"} <= server.seen[0].headers.keys()


@pytest.mark.parametrize("status", [302, 307])
async def test_a_token_server_that_leads_elsewhere_takes_no_credentials_along(status: int) -> None:
    house = House()
    with loopback(house.answer) as other, loopback(house.answer) as server:
        house.stands(server)
        there = Answer(status, headers={"Location": f"{other.url}/token"})
        house.refused = lambda seen: there if seen.headers["host"] == server.authority else None
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(ALICE)) as client:
            await client.resolve()
        assert "authorization" not in other.seen[0].headers
        # A form holds the secret itself: it goes nowhere else.
        async with opened_registry(f"{server.authority}/tool:1", ask=Giver(REFRESH)) as client:
            with pytest.raises((Unavailable, Unknown), match=r"leads elsewhere|status 302"):
                await client.resolve()
        assert all(not one.body for one in other.seen)


@pytest.mark.parametrize(
    "realm",
    [
        "http://localhost:9/token",
        "ftp://x/token",
        "",
        "https://u:p@x/token",
        "https://x/" + "a" * 3000,
    ],
)
async def test_a_token_server_that_cannot_be_trusted_sees_nothing(
    realm: str, tmp_path: Path
) -> None:
    house, giver = House(), Giver(ALICE)
    pair = tmp_path / "cert.pem", tmp_path / "key.pem"
    certify(*pair)
    with loopback(house.answer, pair=pair) as server:
        house.realm = realm
        own = tmp_path / "hosts" / server.authority
        own.mkdir(parents=True)
        (own / "ca.crt").write_bytes(pair[0].read_bytes())
        async with opened_registry(
            f"{server.authority}/tool:1", folders=[own.parent], ask=giver
        ) as client:
            with pytest.raises(PermissionDenied, match="a token server at") as said:
                await client.resolve()
            assert "u:p" not in str(said.value)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"token": ""}', b'{"token": "a\\r\\nX: y"}', b'{"token": "\xc3\xa9"}']
)
async def test_what_is_no_token_is_refused(body: bytes) -> None:
    house = House()
    house.refused = lambda _: Answer(body=body)
    with loopback(house.answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(PermissionDenied, match="gave no token"):
                await client.resolve()


async def test_scopes_name_what_is_done(tmp_path: Path) -> None:
    with registry(tmp_path / "r", auth="token") as server:
        async with opened_registry(f"{server.authority}/team/tool:1", ask=Giver(ALICE)) as client:
            await client.put_blob(blob(b"x"), pieces_of(b"x"))
            assert await fetched(client, blob(b"x")) == b"x"
    assert [one.scopes for one in server.tokens] == [
        ["repository:team/tool:pull,push"],
        ["repository:team/tool:pull"],
    ]


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ('Basic realm="a b"', [("basic", {"realm": "a b"})]),
        ("Basic", [("basic", {})]),
        (
            'Bearer realm="https://x/t",service="s, t",scope="repository:a:pull,push"',
            [
                (
                    "bearer",
                    {"realm": "https://x/t", "service": "s, t", "scope": "repository:a:pull,push"},
                )
            ],
        ),
        (
            'Basic realm="x", Bearer realm="y" , error=invalid_token',
            [("basic", {"realm": "x"}), ("bearer", {"realm": "y", "error": "invalid_token"})],
        ),
        (r'Bearer realm="q\"u\\o"', [("bearer", {"realm": 'q"u\\o'})]),
        ("Negotiate, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("", []),
        ("=,=", []),
    ],
)
def test_demands_are_read(header: str, challenges: list[tuple[str, dict[str, str]]]) -> None:
    found = [(one.scheme, dict(one.parameters)) for one in parse_challenges(header)]
    assert found == challenges


@given(st.text(max_size=300))
def test_no_demand_is_a_fault(header: str) -> None:
    try:
        choose(parse_challenges(header), "host")
    except PermissionDenied:
        pass


def test_a_token_is_preferred_to_a_password() -> None:
    both = parse_challenges('Basic realm="x", Bearer realm="y"')
    assert choose(both, "host").scheme == "bearer"
    with pytest.raises(PermissionDenied, match="host asks for an authorization of no known kind"):
        choose(parse_challenges("Negotiate"), "host")


def test_scopes_are_merged_by_what_they_are_about() -> None:
    scopes = ["repository:b:pull", "repository:a:pull", "repository:a:pull,push", "odd"]
    assert merged(scopes) == ["repository:a:pull,push", "repository:b:pull"]


@pytest.mark.parametrize(
    ("answer", "issued", "life"),
    [
        ({}, None, LIFE_S),
        ({"expires_in": 300}, None, 300.0),
        ({"expires_in": 300}, NOW - timedelta(seconds=100), 200.0),
        ({"expires_in": 300}, NOW + timedelta(hours=1), 300.0),
        ({"expires_in": 300}, NOW - timedelta(hours=1), LIFE_MIN_S),
        ({"expires_in": "soon"}, None, LIFE_S),
        ({"expires_in": -1}, None, LIFE_S),
    ],
)
def test_a_token_lives_as_long_as_its_server_says(
    answer: dict[str, object], issued: datetime | None, life: float
) -> None:
    assert life_of(Document(answer, "token"), issued, NOW) == life


async def test_the_age_of_a_token_counts_by_its_servers_clock() -> None:
    """It was issued long ago by the same clock that says what time it is there now."""
    house = House()
    there = datetime.now(UTC) + timedelta(days=300)
    house.extra = {"expires_in": 100, "issued_at": (there - timedelta(seconds=100)).isoformat()}

    def answer(seen: Seen) -> Answer:
        said = house.answer(seen)
        dated = {"Date": format_datetime(there, usegmt=True), **said.headers}
        return Answer(said.status, said.body, dated)

    with loopback(answer) as server:
        house.stands(server)
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
            await trio.sleep(1)
            await client.resolve()
    assert house.given == 2


@pytest.mark.parametrize(
    ("header", "sound"),
    [("Bearer abc", True), ("Basic a b", True), ("a\r\nb", False), ("", False), ("\xe9", False)],
)
def test_only_what_http_allows_is_shown(header: str, sound: bool) -> None:
    assert showable(header) is sound
