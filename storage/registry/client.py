"""The client of one image's registry: manifests and blobs, asked for over HTTP.

    async with open_registry(remote, hosts, ask, headers) as registry:
        target = await registry.resolve()
        async with registry.get(target) as (begins, pieces): ...

Several hosts are asked in turn, mirrors first: one that fails gives way to the next, and the last
refusal tells of all. What a registry says is a stranger's: documents are bounded, digests are for
the caller to verify.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from ...actors.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
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
from ..digest import Digest, digest_of, parse_digest
from .auth import AskCredentials, Scopes, scope_of
from .errors import all_of, place
from .hosts import Host, Remote
from .referrers import Referrers
from .retry import Patience
from .session import Session
from .transport import Headers, Transport, body_of, close, read, why
from .uploads import Upload, Uploads

if TYPE_CHECKING:
    import httpx2

MANIFEST_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)
SCHEMA_1_TYPES = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    # What registries say that know no other schema.
    "text/plain",
)
DOCUMENT_BYTES_MAX = 8 << 20
PIECE_BYTES = 1 << 18
# A mirror that failed is not asked again at once, with each blob, as long as another host may do.
AVOIDED_FOR_S = 30.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(?:\d{1,18}|\*)", re.ASCII)


class Registry:
    """One image's repository; made by `open_registry`."""

    def __init__(self, remote: Remote, sessions: Sequence[Session]) -> None:
        self.remote = remote
        self._sessions = sessions
        self._avoided_until: dict[str, float] = {}
        self._scopes: Scopes = frozenset({scope_of(remote.repository)})

    # -- reading

    async def resolve(self) -> Descriptor:
        """What the reference points to now."""
        path = f"manifests/{self.remote.object}"
        headers = {"Accept": ", ".join((*MANIFEST_TYPES, "*/*"))}
        # A name is believed only of hosts that may tell; content of a digest tells itself.
        wanted = {"pull"} if self.remote.digest else {"pull", "resolve"}
        async with self._asked(wanted, "HEAD", path, headers) as response:
            found = response.headers
            media_type = _media_type(response)
            digest = found.get("Docker-Content-Digest", "")
            length = found.get("Content-Length", "")
        if not digest or not length.isdigit() or not media_type:
            # Not every registry says so beforehand.
            async with self._asked(wanted, "GET", path, headers) as response:
                raw = await read(response, DOCUMENT_BYTES_MAX, self._what(response))
                media_type = _media_type(response) or media_type
            digest, length = digest_of(raw), str(len(raw))
        if self.remote.digest and digest != self.remote.digest:
            raise FailedPrecondition(
                f"{self.remote.text}: the registry has {digest[:200]}: failed precondition"
            )
        self._check_type(media_type)
        if int(length[:20]) > DOCUMENT_BYTES_MAX:
            raise ResourceExhausted(f"{self.remote.text}: a manifest of {length[:20]} bytes")
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
        async with self._asked({"pull"}, "GET", _path(target), headers) as response:
            begins = 0
            if response.status_code == 206:
                begins = self._checked_range(response, offset)
            try:
                # As they come: what is gathered is lost when the caller has waited long enough.
                async with body_of(response) as pieces:
                    yield begins, pieces
            except httpx2.HTTPError as error:
                self._avoid(response.extensions["holdfast.host"])
                raise Unavailable(f"{self._what(response)}: {why(error)}") from error

    async def referrers(self, digest: Digest, artifact_type: str = "") -> Sequence[Descriptor]:
        """The manifests that refer to this one as their subject: signatures, inventories; those of
        one artifact type, or all."""
        return await Referrers(self.remote, self._asked).of(digest, artifact_type)

    async def has(self, target: Descriptor) -> bool:
        """Whether the repository that is pushed to has it."""
        headers = {"Accept": f"{target.media_type}, */*"}
        try:
            async with self._asked({"push"}, "HEAD", _path(target), headers):
                return True
        except NotFound:
            return False

    # -- writing

    async def put_blob(
        self, target: Descriptor, pieces: AsyncIterator[bytes], *, mounted_from: str = ""
    ) -> None:
        """Upload a blob; from another repository of the same registry, if that has it."""
        await self._uploads.send(target, pieces, mounted_from)

    async def begin_upload(self, target: Descriptor, mounted_from: str = "") -> Upload | None:
        """Begin to upload a blob in parts; None where the registry took it from its repository
        `mounted_from`."""
        return await self._uploads.begin(target, mounted_from)

    async def upload_part(self, upload: Upload, piece: bytes) -> Upload:
        """Send the next bytes; Aborted where the upload is lost, and has to begin anew."""
        return await self._uploads.part(upload, piece)

    async def upload_status(self, upload: Upload) -> Upload:
        """How much of an upload has arrived."""
        return await self._uploads.status(upload)

    async def finish_upload(self, upload: Upload, target: Descriptor, last: bytes = b"") -> None:
        """Send the last bytes, if any, and let the registry have the blob."""
        await self._uploads.finish(upload, target, last)

    async def cancel_upload(self, upload: Upload) -> None:
        """Let the registry forget an upload."""
        await self._uploads.cancel(upload)

    async def put_manifest(self, target: Descriptor, raw: bytes, name: str) -> None:
        """Upload a manifest or an index under a tag or its digest."""
        headers = {"Content-Type": target.media_type}
        async with self._asked({"push"}, "PUT", f"manifests/{name}", headers, raw):
            pass

    # -- inside

    @property
    def _uploads(self) -> Uploads:
        return Uploads(self.remote, self._able({"push"})[0])

    def _able(self, wanted: set[str]) -> Sequence[Session]:
        """Who may be asked, in the order of their choice: never none."""
        able = [one for one in self._sessions if wanted <= one.host.capabilities]
        if not able:
            raise FailedPrecondition(
                f"{self.remote.text}: no host is configured for {' and '.join(sorted(wanted))}:"
                " failed precondition"
            )
        return able[:1] if "push" in wanted else able

    @asynccontextmanager
    async def _asked(
        self,
        wanted: set[str],
        method: str,
        path: str,
        headers: Headers,
        body: bytes | None = None,
        query: Mapping[str, str] | None = None,
    ) -> AsyncGenerator["httpx2.Response"]:
        """The first good answer of a host that has the capabilities, else what all refused."""
        refusals: dict[str, Refusal] = {}
        able = self._able(wanted)
        last = able[-1].host.base
        now = trio.current_time()
        for session in sorted(able, key=lambda one: self._avoided(one, now)):
            host = session.host
            # With others to ask, there is no need to wait for this one.
            attempts_max = None if host.base == last else 1
            try:
                response = await self._sent(
                    session, wanted, method, path, headers, body, query or {}, attempts_max
                )
            except Refusal as error:
                refusals[host.base] = error
                if isinstance(error, Unavailable | ResourceExhausted):
                    self._avoid(host.base)
                continue
            response.extensions["holdfast.host"] = host.base
            try:
                yield response
            finally:
                await close(response)
            return
        raise all_of(self.remote.text, list(refusals.values()), refusals[last])

    async def _sent(
        self,
        session: Session,
        wanted: set[str],
        method: str,
        path: str,
        headers: Headers,
        body: bytes | None,
        query: Mapping[str, str],
        attempts_max: int | None,
    ) -> "httpx2.Response":
        host, push = session.host, "push" in wanted
        parts = [f"{name}={quote(value, safe=':/')}" for name, value in query.items()]
        if not push and host.stands_in_for(self.remote.host):
            parts.append(f"ns={self.remote.host}")
        url = f"{host.base}/{self.remote.repository}/{path}" + ("?" if parts else "")
        url += "&".join(parts)
        scopes = self._scopes
        if push:
            scopes = frozenset({scope_of(self.remote.repository, push=True)})
        return await session.ask(
            method,
            url,
            headers,
            scopes,
            body,
            attempts_max=attempts_max,
            get_instead=path.startswith("manifests/"),
        )

    def _avoided(self, session: Session, now: float) -> bool:
        return self._avoided_until.get(session.host.base, 0.0) > now

    def _avoid(self, base: str) -> None:
        self._avoided_until[base] = trio.current_time() + AVOIDED_FOR_S

    def _checked_range(self, response: "httpx2.Response", offset: int) -> int:
        told = response.headers.get("Content-Range", "")
        found = _CONTENT_RANGE.fullmatch(told.strip())
        if found is None or int(found[1]) != offset:
            raise Unavailable(
                f"{self._what(response)}: asked from byte {offset}, answered {told[:80]!r}"
            )
        return offset

    def _check_type(self, media_type: str) -> None:
        if media_type in SCHEMA_1_TYPES:
            raise Unimplemented(
                f"{self.remote.text}: docker schema 1 images ({media_type}) are not supported:"
                " build or push the image anew with a current tool"
            )
        if not is_index(media_type) and not is_manifest(media_type):
            raise InvalidArgument(
                f"{self.remote.text}: unsupported media type {media_type[:200]!r} of a manifest"
            )

    def _what(self, response: "httpx2.Response") -> str:
        return f"{self.remote.text}: {response.request.method} {place(str(response.url))}"


def _path(target: Descriptor) -> str:
    pointing = is_index(target.media_type) or is_manifest(target.media_type)
    return f"{'manifests' if pointing else 'blobs'}/{target.digest}"


def _media_type(response: "httpx2.Response") -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()


@asynccontextmanager
async def open_registry(
    remote: Remote,
    hosts: Sequence[Host],
    ask: AskCredentials,
    headers: Headers,
    patience: Patience = Patience(),  # noqa: B008  it is frozen
) -> AsyncGenerator[Registry]:
    """A client of the registry that has an image, for the length of the block. `headers` are sent
    with each request to a host that is configured, and to no other server."""
    sessions: list[Session] = []
    try:
        for host in hosts:
            transport = await trio.to_thread.run_sync(Transport, remote.text, host)
            sessions.append(Session(remote.text, host, transport, ask, headers, patience))
        yield Registry(remote, sessions)
    finally:
        for session in sessions:
            await session.aclose()
