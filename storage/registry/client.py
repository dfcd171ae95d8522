"""The client of one image's registry: manifests and blobs, asked for over HTTP.

    async with open_registry(remote, hosts, ask) as registry:
        target = await registry.resolve()
        async with registry.get(target) as pieces: ...

What a registry says is a stranger's: documents are bounded, digests are for the caller to verify.
The package that speaks HTTP is imported when the first registry is opened.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

import trio

from ...actors.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from ..descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    is_index,
    is_manifest,
)
from ..digest import digest_of, parse_digest
from ..document import Document
from .auth import AskCredentials, Challenge, Credentials, choose, parse_challenges
from .hosts import Host, Remote, is_loopback

if TYPE_CHECKING:
    import httpx2

MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)
DOCUMENT_BYTES_MAX = 8 << 20
TOKEN_BYTES_MAX = 1 << 20
ERROR_BYTES_MAX = 4096
CONNECT_WITHIN_S, SILENT_WITHIN_S, CLOSE_WITHIN_S = 30.0, 300.0, 5.0
PIECE_BYTES = 1 << 18
Headers = Mapping[str, str]


class Registry:
    """One image's repository; made by `open_registry`."""

    def __init__(
        self,
        remote: Remote,
        hosts: Sequence[Host],
        clients: Mapping[str, "httpx2.AsyncClient"],
        ask: AskCredentials,
    ) -> None:
        self.remote = remote
        self._hosts = hosts
        self._clients = clients
        self._ask = ask
        self._credentials: dict[str, Credentials] = {}
        self._authorizations: dict[tuple[str, str], str] = {}
        self._authorizing = trio.Lock()

    # -- reading

    async def resolve(self) -> Descriptor:
        """What the reference points to now."""
        path = f"manifests/{self.remote.object}"
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        async with self._asked("resolve", "HEAD", path, headers) as response:
            found = response.headers
            media_type = found.get("Content-Type", "").partition(";")[0].strip()
            digest = found.get("Docker-Content-Digest", "")
            length = found.get("Content-Length", "")
        if not digest or not length.isdigit():
            # Not every registry says so beforehand.
            async with self._asked("resolve", "GET", path, headers) as response:
                raw = await _read(response, DOCUMENT_BYTES_MAX)
                media_type = response.headers.get("Content-Type", media_type).partition(";")[0]
            digest, length = digest_of(raw), str(len(raw))
        if self.remote.digest and digest != self.remote.digest:
            raise FailedPrecondition(
                f"{self.remote.text}: the registry has {digest[:200]}: failed precondition"
            )
        if not is_index(media_type) and not is_manifest(media_type):
            raise InvalidArgument(
                f"{self.remote.text}: unsupported media type {media_type[:200]!r} of a manifest"
            )
        if int(length) > DOCUMENT_BYTES_MAX:
            raise ResourceExhausted(f"{self.remote.text}: a manifest of {length} bytes")
        return Descriptor(media_type=media_type, digest=parse_digest(digest), size=int(length))

    @asynccontextmanager
    async def get(
        self, target: Descriptor, offset: int = 0, end: int | None = None
    ) -> AsyncGenerator[tuple[int, AsyncIterator[bytes]]]:
        """The bytes of a manifest or a blob: where they begin, `offset` or 0, and their pieces.

        Asked for up to `end`, which is not among them; a server that knows no ranges gives all.
        """
        import httpx2

        headers = {"Accept": f"{target.media_type}, */*"}
        if offset or end is not None:
            headers["Range"] = f"bytes={offset}-{'' if end is None else end - 1}"
        async with self._asked("pull", "GET", self._path(target), headers) as response:
            begins = offset if response.status_code == 206 else 0
            try:
                yield begins, response.aiter_raw(PIECE_BYTES)
            except httpx2.HTTPError as error:
                raise Unavailable(f"{self.remote.text}: {target.digest}: {_why(error)}") from error

    # -- writing

    async def has(self, target: Descriptor) -> bool:
        """Whether the repository has it."""
        headers = {"Accept": f"{target.media_type}, */*"}
        try:
            async with self._asked("push", "HEAD", self._path(target), headers):
                return True
        except NotFound:
            return False

    async def put_blob(
        self, target: Descriptor, pieces: AsyncIterator[bytes], *, mounted_from: str = ""
    ) -> None:
        """Upload a blob; from another repository of the same registry, if that has it."""
        path = "blobs/uploads/"
        if mounted_from:
            path += f"?mount={target.digest}&from={mounted_from}"
        async with self._asked("push", "POST", path, {"Content-Length": "0"}) as response:
            if response.status_code == 201:
                return
            location = response.headers.get("Location", "")
            url = urljoin(str(response.url), location)
        if not location or urlsplit(url).scheme not in ("http", "https"):
            raise Unknown("the registry named no place for an upload")
        url += ("&" if urlsplit(url).query else "?") + f"digest={target.digest}"
        headers = {
            "Content-Length": str(target.size),
            "Content-Type": "application/octet-stream",
        }
        async with self._asked("push", "PUT", url, headers, pieces):
            pass

    async def put_manifest(self, target: Descriptor, raw: bytes, name: str) -> None:
        """Upload a manifest or an index under a tag or its digest."""
        headers = {"Content-Type": target.media_type}
        async with self._asked("push", "PUT", f"manifests/{name}", headers, raw):
            pass

    # -- inside

    def _path(self, target: Descriptor) -> str:
        pointing = is_index(target.media_type) or is_manifest(target.media_type)
        return f"{'manifests' if pointing else 'blobs'}/{target.digest}"

    @asynccontextmanager
    async def _asked(
        self,
        capability: str,
        method: str,
        path: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None = None,
    ) -> AsyncGenerator["httpx2.Response"]:
        """The first good answer of a host that has the capability, else the last refusal."""
        hosts = [host for host in self._hosts if capability in host.capabilities]
        if capability == "push":
            hosts = hosts[:1]
        refusal: Refusal = FailedPrecondition(
            f"{self.remote.text}: no host is configured for {capability}: failed precondition"
        )
        for host in hosts:
            url = path if "://" in path else f"{host.base}/{self.remote.repository}/{path}"
            try:
                response = await self._send(host, capability, method, url, headers, body)
            except Refusal as error:
                refusal = error
                continue
            try:
                yield response
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
                    await response.aclose()
            return
        raise refusal

    async def _send(
        self,
        host: Host,
        capability: str,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
    ) -> "httpx2.Response":
        actions = "pull,push" if capability == "push" else "pull"
        scope = f"repository:{self.remote.repository}:{actions}"
        # What was shown to one server is not shown to another that it names.
        own = urlsplit(url).netloc == host.authority
        key = host.authority, actions
        for first in (True, False):
            sent = {**host.headers, **headers} if own else dict(headers)
            authorization = self._authorizations.get(key, "")
            if authorization and own:
                sent["Authorization"] = authorization
            response = await self._request(self._clients[host.base], method, url, sent, body)
            again = first and own and (body is None or isinstance(body, bytes))
            if response.status_code == 401 and again:
                said = ", ".join(response.headers.get_list("WWW-Authenticate"))
                await response.aclose()
                # One at a time: the client answers one question after another.
                async with self._authorizing:
                    if self._authorizations.get(key, "") == authorization:
                        challenge = choose(parse_challenges(said), host.authority)
                        self._authorizations[key] = await self._authorize(host, challenge, scope)
                continue
            if response.status_code >= 300:
                await self._refuse(response, method)
            return response
        raise AssertionError("the second answer returns or raises")

    async def _request(
        self,
        client: "httpx2.AsyncClient",
        method: str,
        url: str,
        headers: Headers,
        body: bytes | AsyncIterator[bytes] | None,
    ) -> "httpx2.Response":
        import httpx2

        try:
            request = client.build_request(method, url, headers=dict(headers), content=body)
            return await client.send(
                request, stream=True, follow_redirects=method in ("GET", "HEAD")
            )
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError) as error:
            raise Unavailable(
                f"{self.remote.text}: {method} {_place(url)}: {_why(error)}"
            ) from error

    async def _authorize(self, host: Host, challenge: Challenge, scope: str) -> str:
        """The header that answers a challenge."""
        if host.authority not in self._credentials:
            self._credentials[host.authority] = await self._ask(host.authority)
        given = self._credentials[host.authority]
        if given.header:
            return given.header
        if challenge.scheme == "basic":
            if not given.username:
                raise PermissionDenied(f"{self.remote.text}: no basic auth credentials")
            return given.basic()
        realm = challenge.parameters.get("realm", "")
        secure = urlsplit(realm).scheme == "https"
        if not secure and (urlsplit(realm).scheme != "http" or host.base.startswith("https:")):
            raise PermissionDenied(f"{host.authority}: a token server at {realm[:200]!r}")
        service = challenge.parameters.get("service", "")
        raw = await self._token(self._clients[host.base], realm, service, scope, given)
        document = Document.parse(raw, "token")
        token = document.text("token") or document.text("access_token")
        if not token:
            raise PermissionDenied(f"{self.remote.text}: the token server gave no token")
        return f"Bearer {token}"

    async def _token(
        self,
        client: "httpx2.AsyncClient",
        realm: str,
        service: str,
        scope: str,
        given: Credentials,
    ) -> bytes:
        import httpx2

        fields = {"scope": scope, "service": service}
        if given.secret and not given.username:
            grant = {"grant_type": "refresh_token", "refresh_token": given.secret}
            form = {**fields, **grant, "client_id": "holdfast"}
            request = client.build_request("POST", realm, data=form)
        else:
            request = client.build_request(
                "GET", realm, params=httpx2.URL(realm).params.merge(fields)
            )
            if given.username:
                request.headers["Authorization"] = given.basic()
        try:
            response = await client.send(request, stream=True)
        except (httpx2.HTTPError, ssl.SSLError) as error:
            raise Unavailable(f"token of {_place(realm)}: {_why(error)}") from error
        try:
            if response.status_code >= 300:
                await self._refuse(response, "token")
            return await _read(response, TOKEN_BYTES_MAX)
        finally:
            await response.aclose()

    async def _refuse(self, response: "httpx2.Response", what: str) -> None:
        """Close the answer and raise what it means."""
        try:
            said = (await _read(response, ERROR_BYTES_MAX)).decode(errors="replace").strip()
        except Refusal:
            said = ""
        status = response.status_code
        await response.aclose()
        text = f"{self.remote.text}: {what} {_place(str(response.url))}: HTTP status {status}"
        text = f"{text}: {said[:300]}" if said else text
        match status:
            case 404:
                raise NotFound(f"{text}: not found")
            case 401 | 403:
                raise PermissionDenied(
                    f"{text}: pull access denied, repository does not exist or may require"
                    " authorization"
                )
            case 429:
                raise ResourceExhausted(text)
            case _ if status >= 500:
                raise Unavailable(text)
            case _:
                raise Unknown(text)


def _why(error: BaseException) -> str:
    """The first words that an error or what caused it has."""
    cause: BaseException | None = error
    while cause is not None:
        if text := str(cause).strip():
            return text
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _place(url: str) -> str:
    """A URL for an error: without its query, which may hold a secret."""
    return url.partition("?")[0][:300]


async def _read(response: "httpx2.Response", bytes_max: int) -> bytes:
    import httpx2

    raw = bytearray()
    try:
        async for piece in response.aiter_bytes():
            raw += piece
            if len(raw) > bytes_max:
                raise ResourceExhausted(f"{_place(str(response.url))}: more than {bytes_max} bytes")
    except httpx2.HTTPError as error:
        raise Unavailable(f"{_place(str(response.url))}: {_why(error)}") from error
    return bytes(raw)


@asynccontextmanager
async def open_registry(
    remote: Remote, hosts: Sequence[Host], ask: AskCredentials, headers: Headers
) -> AsyncGenerator[Registry]:
    """A client of the registry that has an image, for the length of the block."""
    clients: dict[str, httpx2.AsyncClient] = {}
    try:
        for host in hosts:
            clients[host.base] = await trio.to_thread.run_sync(_client, host, headers)
        yield Registry(remote, hosts, clients, ask)
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_WITHIN_S):
            for client in clients.values():
                await client.aclose()


def _client(host: Host, headers: Headers) -> "httpx2.AsyncClient":
    """Imports the package, and reads certificates: it blocks."""
    import httpx2

    return httpx2.AsyncClient(
        verify=_trust(host),
        timeout=httpx2.Timeout(SILENT_WITHIN_S, connect=CONNECT_WITHIN_S),
        headers={"User-Agent": "holdfast", "Accept-Encoding": "identity", **headers},
        # A proxy of the environment's is not asked for this machine itself.
        trust_env=not is_loopback(host.authority),
    )


def _trust(host: Host) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for path in host.authorities:
        try:
            context.load_verify_locations(path)
        except (OSError, ssl.SSLError) as error:
            raise InvalidArgument(f"certificate authority {path}: {error}") from error
    if host.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
