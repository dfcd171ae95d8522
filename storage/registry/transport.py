"""Transport: one request and one answer over HTTP, with redirects, and nothing said to strangers.

A request has headers that any server may see, and private ones, which only the origin of its URL
sees: once a redirect has led to another origin, they are gone for good, and so is our certificate.
The package that speaks HTTP is imported when the first transport is made.
"""

import math
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import trio

from ...actors.errors import InvalidArgument, ResourceExhausted, Unavailable
from .errors import ERROR_BYTES_MAX, Failure, failure_of_answer, place, shown
from .hosts import Host, is_loopback, joined, origin_of
from .retry import retry_after_of
from .trust import causes, context_of, fault_of_tls

if TYPE_CHECKING:
    import httpx2

REDIRECTS = frozenset({301, 302, 303, 307, 308})
REDIRECTS_MAX = 10
LOCATION_MAX = 8192
CONNECT_WITHIN_S, SILENT_WITHIN_S, CLOSE_WITHIN_S = 30.0, 60.0, 5.0
HEAD_WITHIN_S = 300.0
"""How long an answer's head may take, however slowly it drips."""
SLOW_BYTES_PER_S = 10_000
"""A body that is sent may be so slow."""
DOCUMENT_WITHIN_S, BEGINNING_WITHIN_S = 120.0, 10.0
# A proxy of the environment's is not asked for this machine itself.
OWN_MACHINE = ("all://localhost", "all://127.0.0.0/8", "all://[::1]")
Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent."""

    method: str
    url: str
    headers: Headers = field(default_factory=dict[str, str])
    private: Headers = field(default_factory=dict[str, str], repr=False)
    """What only the URL's own origin sees."""
    body: bytes | AsyncIterator[bytes] | None = field(default=None, repr=False)
    private_body: bool = False
    """Whether the body, too, is for the URL's own origin alone."""


class Unanswered(Exception):
    """No answer came that can be used; never leaves this package."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.refusal))
        self.failure = failure


class Transport:
    """Sends requests to a host, and to where it redirects. `what` begins each error's text."""

    def __init__(self, what: str, host: Host) -> None:
        """Imports the package, and reads certificates: it blocks."""
        self._what = what
        self._host = host
        self._own = _client(host, own=True)
        self._foreign: httpx2.AsyncClient | None = None
        self._opening = trio.Lock()

    async def send(self, request: Request) -> "httpx2.Response":
        """The answer, whatever its status, its body unread; else Unanswered."""
        method, url, body = request.method, request.url, request.body
        headers = {**request.headers, **request.private}
        for _ in range(REDIRECTS_MAX + 1):
            response = await self._exchange(method, url, headers, body)
            location = response.headers.get("Location", "")
            leads_on = response.status_code in REDIRECTS and bool(location)
            if not leads_on or not _may_follow(request, response.status_code):
                return response
            await close(response)
            following = self._following(method, url, location)
            if origin_of(following) != origin_of(url):
                if request.private_body:
                    raise self._no(
                        method, url, f"leads elsewhere with a secret: {place(following)}"
                    )
                headers = dict(request.headers)
            url = following
        raise self._no(request.method, request.url, f"more than {REDIRECTS_MAX} redirects")

    async def aclose(self) -> None:
        """Close all connections."""
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
            await self._own.aclose()
            if self._foreign is not None:
                await self._foreign.aclose()

    def _following(self, method: str, url: str, location: str) -> str:
        if len(location) > LOCATION_MAX:
            raise self._no(method, url, "leads to an address without an end")
        try:
            following = joined(url, location)
        except InvalidArgument as error:
            raise self._no(method, url, "leads to what is no address of http") from error
        if origin_of(url)[0] == "https" and origin_of(following)[0] != "https":
            raise self._no(method, url, f"leads from https to {place(following)}")
        return following

    async def _exchange(
        self, method: str, url: str, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> "httpx2.Response":
        import httpx2

        client = await self._client_for(url)
        # A body that is streamed takes as long as it is long, and each write has a deadline.
        within_s = math.inf
        if isinstance(body, bytes | None):
            within_s = HEAD_WITHIN_S + len(body or b"") / SLOW_BYTES_PER_S
        try:
            request = client.build_request(method, url, headers=dict(headers), content=body)
            if method not in ("GET", "HEAD"):
                # A registry may verify a large blob before it says the first word.
                request.extensions["timeout"]["read"] = HEAD_WITHIN_S
            with trio.fail_after(within_s):
                return await client.send(request, stream=True, follow_redirects=False)
        except (
            httpx2.HTTPError,
            httpx2.InvalidURL,
            ssl.SSLError,
            trio.TooSlowError,
            UnicodeError,
        ) as error:
            why, passing = _why(error, origin_of(url)[1])
            refusal = Unavailable(f"{self._what}: {method} {place(url)}: {why}")
            refusal.__cause__ = error
            raise Unanswered(Failure(refusal, passing)) from error

    async def _client_for(self, url: str) -> "httpx2.AsyncClient":
        if origin_of(url) == self._host.origin:
            return self._own
        async with self._opening:
            if self._foreign is None:
                self._foreign = await trio.to_thread.run_sync(
                    partial(_client, self._host, own=False)
                )
            return self._foreign

    def _no(self, method: str, url: str, why: str) -> Unanswered:
        return Unanswered(Failure(Unavailable(f"{self._what}: {method} {place(url)}: {why}")))


def _may_follow(request: Request, status: int) -> bool:
    # What writes goes on only where the server says that it is the same request elsewhere.
    if request.method in ("GET", "HEAD"):
        return True
    return status in (307, 308) and isinstance(request.body, bytes | None)


def _client(host: Host, *, own: bool) -> "httpx2.AsyncClient":
    import httpx2

    silent = host.silent_within_s or SILENT_WITHIN_S
    connect = host.connect_within_s or CONNECT_WITHIN_S
    proxy = host.proxy if own else ""
    by_environment = not proxy and not (own and is_loopback(host.authority))
    try:
        return httpx2.AsyncClient(
            verify=context_of(host, own=own),
            timeout=httpx2.Timeout(silent, connect=connect),
            headers={"User-Agent": "holdfast", "Accept-Encoding": "identity"},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=30.0),
            proxy=proxy or None,
            mounts=dict.fromkeys(OWN_MACHINE) if by_environment else None,
            trust_env=by_environment,
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        # The address may hold a password.
        raise InvalidArgument(
            "a proxy of the environment, or of hosts.toml, has an address that cannot be used"
        ) from error


def _why(error: BaseException, authority: str) -> tuple[str, bool]:
    """What an error says, and whether the same request may succeed later."""
    import httpx2

    if tls := fault_of_tls(error, authority):
        return tls, False
    if any(
        isinstance(one, socket.gaierror) and one.errno == socket.EAI_NONAME for one in causes(error)
    ):
        return "there is no host of this name", False
    match error:
        case httpx2.LocalProtocolError():
            return "a header or an address that HTTP does not allow", False
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol() | UnicodeError():
            return "no address of http", False
        case httpx2.ConnectTimeout():
            return "no connection in time: is the name right, is the server up?", True
        case httpx2.ProxyError():
            return f"the proxy of the environment or of hosts.toml: {shown(str(error))}", True
        case httpx2.TimeoutException() | trio.TooSlowError():
            return "no answer in time", True
        case httpx2.ConnectError():
            return f"no connection: {_first_words(error)}", True
        case _:
            return f"the connection broke: {_first_words(error)}", True


def why(error: BaseException) -> str:
    """What an error in the middle of an answer says."""
    return _why(error, "the server")[0]


def _first_words(error: BaseException) -> str:
    for cause in causes(error):
        if text := shown(str(cause)):
            return text
    return type(error).__name__


async def close(response: "httpx2.Response") -> None:
    """Be done with an answer, also when the task is being cancelled."""
    with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
        await response.aclose()


@asynccontextmanager
async def body_of(
    response: "httpx2.Response",
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """The body's pieces, as they come. Leaving the block closes the answer,
    wherever it stands."""
    import httpx2

    pieces = response.aiter_raw()
    try:
        yield pieces
    finally:
        await close(response)
        # What is left in the middle would be ended by Python's own collection, and some day.
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
            with suppress(httpx2.HTTPError, httpx2.StreamError):
                async for _ in pieces:
                    pass


async def read(response: "httpx2.Response", bytes_max: int, what: str) -> bytes:
    """A whole document: within bounds, in time, as it was sent."""
    import httpx2

    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        # What unfolds without an end is refused before it does.
        raise Unavailable(f"{what}: encoded in a way that was not asked for")
    raw = bytearray()
    try:
        with trio.fail_after(DOCUMENT_WITHIN_S):
            async with body_of(response) as pieces:
                async for piece in pieces:
                    raw += piece
                    if len(raw) > bytes_max:
                        raise ResourceExhausted(f"{what}: more than {bytes_max} bytes")
    except (httpx2.HTTPError, trio.TooSlowError, ssl.SSLError) as error:
        raise Unavailable(f"{what}: {why(error)}") from error
    return bytes(raw)


async def failure_of(response: "httpx2.Response", what: str) -> Failure:
    """What an answer means that is not a good one. Reads as much of its body as that needs."""
    import httpx2

    raw = bytearray()
    with trio.move_on_after(BEGINNING_WITHIN_S):
        try:
            async with body_of(response) as pieces:
                async for piece in pieces:
                    raw += piece
                    if len(raw) >= ERROR_BYTES_MAX:
                        break
        except (httpx2.HTTPError, ssl.SSLError):
            pass  # whatever is wrong with the body of an error is no error of its own
    after = retry_after_of(response.headers.get("Retry-After", ""), datetime.now(UTC))
    return failure_of_answer(what, response.status_code, response.headers, bytes(raw), after)
