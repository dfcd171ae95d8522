"""Session: one host, asked with authorization and with patience.

An answer of 2xx comes back with its body unread, and is the caller's to close; anything else is
raised as the refusal that it means. What passes is asked again (`retry.py`), as long as the request
can be sent again; a 401 is answered with what the client has (`tokens.py`).
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import trio

from .auth import AskCredentials, Scopes
from .errors import Failure, place
from .hosts import Host, origin_of
from .retry import Patience, pause_before_next
from .tokens import Authorizer
from .transport import Headers, Request, Transport, Unanswered, close, failure_of

if TYPE_CHECKING:
    import httpx2

# None yet, then a token that had expired, then credentials that were not enough.
DEMANDS_MAX = 3
WORDLESS = frozenset({400, 403, 405})


class Session:
    """One host. `what` begins each error's text; `headers` are for this host alone."""

    def __init__(
        self,
        what: str,
        host: Host,
        transport: Transport,
        ask: AskCredentials,
        headers: Headers,
        patience: Patience,
    ) -> None:
        self.host = host
        self._what = what
        self._transport = transport
        self._authorizer = Authorizer(what, host, transport, ask)
        self._private = {**headers, **host.headers}
        self._patience = patience

    async def ask(
        self,
        method: str,
        url: str,
        headers: Headers,
        scopes: Scopes,
        body: bytes | AsyncIterator[bytes] | None = None,
        *,
        attempts_max: int | None = None,
        get_instead: bool = False,
    ) -> "httpx2.Response":
        """A good answer, to be closed by the caller; else a refusal. `get_instead`: a HEAD that is
        refused is asked as a GET: not every registry knows it, and none says why in its answer."""
        began, attempts = trio.current_time(), 0
        while True:
            attempts += 1
            try:
                return await self.ask_once(method, url, headers, scopes, body, get_instead)
            except Unanswered as error:
                failure = error.failure
            pause = None
            if attempts != attempts_max and isinstance(body, bytes | None):
                pause = self.pause_before_next(failure, attempts, began)
            if pause is None:
                raise failure.refusal
            await trio.sleep(pause)

    def pause_before_next(self, failure: Failure, attempts: int, began: float) -> float | None:
        """How long to wait after so many attempts since then; None: the failure stands."""
        return pause_before_next(self._patience, failure, attempts, trio.current_time() - began)

    async def ask_once(
        self,
        method: str,
        url: str,
        headers: Headers,
        scopes: Scopes,
        body: bytes | AsyncIterator[bytes] | None = None,
        get_instead: bool = False,
    ) -> "httpx2.Response":
        """The same without patience: a good answer, else Unanswered."""
        own = origin_of(url) == self.host.origin
        demands = 0
        while True:
            shown = await self._authorizer.header(scopes) if own else ""
            request = Request(
                method=method,
                url=url,
                headers=headers,
                private=self._shown(shown) if own else {},
                body=body,
            )
            response = await self._transport.send(request)
            if response.status_code != 401:
                self._authorizer.accepted(scopes, shown)
            if response.status_code < 300:
                return response
            failure = await self._failure(request, response)
            # What a stranger demands, to whom the host has led us, is not answered.
            own_words = own and origin_of(str(response.url)) == self.host.origin
            if failure.status == 401 and own_words and demands < DEMANDS_MAX:
                demands += 1
                demand = ", ".join(response.headers.get_list("WWW-Authenticate"))
                again = isinstance(body, bytes | None) and bool(demand)
                if again and await self._authorizer.answer(demand, scopes, shown):
                    continue
            if get_instead and method == "HEAD" and failure.status in WORDLESS:
                method = "GET"
                continue
            raise Unanswered(failure)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    def _shown(self, authorization: str) -> Headers:
        return {**self._private, **({"Authorization": authorization} if authorization else {})}

    async def _failure(self, request: Request, response: "httpx2.Response") -> Failure:
        try:
            return await failure_of(
                response, f"{self._what}: {request.method} {place(str(response.url))}"
            )
        finally:
            await close(response)
