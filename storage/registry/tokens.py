"""Tokens: what is shown to one host so that it lets us in, kept and renewed.

    nothing -401-> token or password -401-> a new token -401-> other credentials -401-> refused

A registry says whether it wants a password or a token of its token server. From then on each
request has what its scopes need; a token is renewed shortly before it expires, and when it is
rejected before that. The client is asked for credentials once, and a second time when these are
rejected. One task at a time asks; the others wait for its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import trio

from ...actors.errors import InvalidArgument, PermissionDenied, Refusal
from ..document import Document
from .auth import (
    AskCredentials,
    Challenge,
    Credentials,
    Scopes,
    choose,
    merged,
    parse_challenges,
    showable,
)
from .errors import Failure, place
from .hosts import Host, origin_of
from .retry import date_of
from .transport import Request, Transport, Unanswered, close, failure_of, read

if TYPE_CHECKING:
    import httpx2

TOKEN_BYTES_MAX = 1 << 20
REALM_MAX = 2048
CLIENT_ID = "holdfast"
ASKED_MAX = 2
# What a token server means that does not say how long its token lives.
LIFE_S, LIFE_MIN_S = 60.0, 1.0
# It is renewed when so much of its life has gone: a request takes time to arrive.
RENEWED_AT = 0.9
# So a token server answers that does not know GET, or POST, and knows the other.
NO_GET, NO_POST = frozenset({404, 405}), frozenset({400, 401, 404, 405})


@dataclass(slots=True)
class Held:
    """What is shown for some scopes; `good` once the host has let us in with it."""

    header: str = field(repr=False)
    renew_at: float = float("inf")
    good: bool = False


class Rejected(Exception):
    """The token server does not take the credentials; never leaves this file."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.refusal))
        self.failure = failure


class Authorizer:
    """Keeps what one host is shown. `what` begins each error's text."""

    def __init__(self, what: str, host: Host, transport: Transport, ask: AskCredentials) -> None:
        self._what = what
        self._host = host
        self._transport = transport
        self._ask = ask
        self._lock = trio.Lock()
        self._challenge: Challenge | None = None
        self._credentials = Credentials()
        self._asked = 0
        self._refresh_token = ""
        self._held: dict[Scopes, Held] = {}
        self._demanded: dict[Scopes, Sequence[str]] = {}

    async def header(self, scopes: Scopes) -> str:
        """What to show with the next request; empty as long as the host has not asked."""
        held = self._held.get(scopes)
        if held is not None and trio.current_time() < held.renew_at:
            return held.header
        if self._challenge is None:
            return ""
        async with self._lock:
            held = self._held.get(scopes)
            if held is None or trio.current_time() >= held.renew_at:
                held = await self._obtain(self._challenge, scopes)
            return held.header

    def accepted(self, scopes: Scopes, header: str) -> None:
        """The host let us in with it."""
        held = self._held.get(scopes)
        if held is not None and held.header == header:
            held.good = True

    async def answer(self, demand: str, scopes: Scopes, shown: str) -> bool:
        """A host said 401, with this WWW-Authenticate, to what was shown; whether there is
        anything else to show."""
        async with self._lock:
            held = self._held.get(scopes)
            if held is not None and held.header != shown:
                return True  # another task was faster
            self._challenge = choose(parse_challenges(demand), self._host.authority)
            # A registry may know what it wants better than we do, by names of its own.
            self._demanded[scopes] = self._challenge.parameters.get("scope", "").split()
            if held is not None:
                del self._held[scopes]
                basic = self._challenge.scheme == "basic" or bool(self._credentials.header)
                # A token that was good has expired, or was withdrawn; one that never was is what
                # these credentials are worth.
                if (basic or not held.good) and not await self._other_credentials():
                    return False
            await self._obtain(self._challenge, scopes)
            return True

    async def _other_credentials(self) -> bool:
        """Ask the client once more; whether it has others now."""
        before = self._credentials
        if self._asked >= ASKED_MAX or before.empty:
            return False
        await self._ask_client()
        return self._credentials != before

    async def _ask_client(self) -> None:
        self._asked += 1
        given = await self._ask(self._host.authority)
        if given.header and not showable(given.header):
            raise InvalidArgument(f"{self._host.authority}: the header given is none of HTTP's")
        # One that has nothing to say the second time has not taken back the first.
        if not given.empty and given != self._credentials:
            self._credentials = given
            self._refresh_token = ""
            self._held.clear()

    async def _obtain(self, challenge: Challenge, scopes: Scopes) -> Held:
        if not self._asked:
            await self._ask_client()
        try:
            held = await self._fetch(challenge, scopes)
        except Rejected as rejected:
            if not await self._other_credentials():
                raise rejected.failure.refusal from None
            try:
                held = await self._fetch(challenge, scopes)
            except Rejected as again:
                raise again.failure.refusal from None
        self._held[scopes] = held
        return held

    async def _fetch(self, challenge: Challenge, scopes: Scopes) -> Held:
        """What answers the challenge, for as long as it does."""
        given = self._credentials
        if given.header:
            return Held(given.header)
        if challenge.scheme == "basic":
            if not given.username:
                raise PermissionDenied(
                    f"{self._what}: {self._host.authority}: no basic auth credentials:"
                    " log in to the registry"
                )
            return Held(given.basic())
        realm = self._realm(challenge)
        demanded = self._demanded.get(scopes, ())
        fields = [("service", challenge.parameters.get("service", ""))]
        fields += [("scope", scope) for scope in merged([*scopes, *demanded])]
        return await self._token(realm, fields, given)

    def _realm(self, challenge: Challenge) -> str:
        realm = challenge.parameters.get("realm", "")
        try:
            scheme = origin_of(realm)[0]
            plain = scheme == "http" and self._host.origin[0] == "https"
        except InvalidArgument:
            plain = True
        if plain or "@" in urlsplit(realm).netloc or len(realm) > REALM_MAX:
            raise PermissionDenied(
                f"{self._what}: {self._host.authority} sends us to a token server at"
                f" {place(realm)!r}, which credentials are not shown to"
            )
        return realm

    async def _token(self, realm: str, fields: list[tuple[str, str]], given: Credentials) -> Held:
        """By the way that these credentials are usually shown, else by the other."""
        if self._refresh_token:
            try:
                return await self._post(realm, fields, "", self._refresh_token)
            except Rejected:
                self._refresh_token = ""  # it has had its time; the credentials still stand
        first, second, unknown = self._get, self._post, NO_GET
        if given.secret and not given.username:
            first, second, unknown = self._post, self._get, NO_POST
        try:
            return await first(realm, fields, given.username, given.secret)
        except Rejected as rejected:
            if given.empty or rejected.failure.status not in unknown:
                raise
            try:
                return await second(realm, fields, given.username, given.secret)
            except Rejected:
                raise rejected from None

    async def _get(
        self, realm: str, fields: list[tuple[str, str]], username: str, secret: str
    ) -> Held:
        split = urlsplit(realm)
        query = [*parse_qsl(split.query, keep_blank_values=True), *fields]
        shown = Credentials(username=username, secret=secret)
        if username:
            query.append(("account", username))
        return await self._exchange(
            Request(
                method="GET",
                url=urlunsplit(split._replace(query=urlencode(query), fragment="")),
                private={} if shown.empty else {"Authorization": shown.basic()},
            )
        )

    async def _post(
        self, realm: str, fields: list[tuple[str, str]], username: str, secret: str
    ) -> Held:
        form = {
            "service": fields[0][1],
            "scope": " ".join(scope for name, scope in fields if name == "scope"),
            "client_id": CLIENT_ID,
        }
        if username:
            form |= {"grant_type": "password", "username": username, "password": secret}
        else:
            form |= {"grant_type": "refresh_token", "refresh_token": secret}
        return await self._exchange(
            Request(
                method="POST",
                url=realm,
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                body=urlencode(form).encode(),
                private_body=True,
            )
        )

    async def _exchange(self, request: Request) -> Held:
        what = f"{self._what}: token of {place(request.url)}"
        response = await self._transport.send(request)
        try:
            if response.status_code < 300:
                return self._read(response, await read(response, TOKEN_BYTES_MAX, what), what)
            failure = await failure_of(response, what)
        finally:
            await close(response)
        raise Unanswered(failure) if failure.passing else Rejected(failure)

    def _read(self, response: "httpx2.Response", raw: bytes, what: str) -> Held:
        document = Document.parse(raw, what)
        token = document.text("token") or document.text("access_token")
        header = f"Bearer {token}"
        if not token or not showable(header):
            raise PermissionDenied(f"{what}: the token server gave no token")
        self._refresh_token = document.text("refresh_token") or self._refresh_token
        life = life_of(
            document, _stamp(document.text("issued_at")), date_of(response.headers.get("Date", ""))
        )
        return Held(header, trio.current_time() + RENEWED_AT * life)


def life_of(document: Document, issued: datetime | None, now: datetime | None) -> float:
    """How many more seconds a token lives, by the token server's own clock."""
    try:
        life = float(document.number("expires_in")) or LIFE_S
    except Refusal:
        life = LIFE_S
    if issued is not None and now is not None:
        life -= max(0.0, (now - issued).total_seconds())
    # One that seems to have ended before it came is tried all the same: clocks differ.
    return max(life, LIFE_MIN_S)


def _stamp(text: str) -> datetime | None:
    try:
        stamp = datetime.fromisoformat(text[:40])
    except ValueError:
        return None
    return stamp if stamp.tzinfo else None
