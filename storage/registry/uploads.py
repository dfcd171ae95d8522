"""Uploads: a blob sent to a registry in parts, each of which may be sent again.

    begin --> (part)* --> finish        the blob is there
          \\-> there already: mounted from another repository
    cancel ends it at any point

An `Upload` is a value: each verb gives the next one, which knows where the next part goes and how
much the registry has. A part whose fate is unknown is settled by asking how much arrived; where the
registry does not know either, the upload is lost: Aborted, and the caller begins anew.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from ...actors.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unknown,
)
from ..descriptor import Descriptor
from .auth import Scopes, scope_of
from .errors import Failure, place
from .hosts import Remote, joined, origin_of
from .session import Session
from .transport import LOCATION_MAX, Unanswered, close

if TYPE_CHECKING:
    import httpx2

BLOB_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload under way."""

    url: str
    offset: int = 0
    """How many bytes the registry has."""
    part_bytes_min: int = 0
    """The registry wants no smaller part, but for the last."""


class Uploads:
    """The verbs, for one repository of one host."""

    def __init__(self, remote: Remote, session: Session) -> None:
        self._remote = remote
        self._session = session
        self._scopes: Scopes = frozenset({scope_of(remote.repository, push=True)})

    async def begin(self, target: Descriptor, mounted_from: str = "") -> Upload | None:
        """A new upload; None where the registry took the blob from its repository
        `mounted_from`."""
        url = f"{self._session.host.base}/{self._remote.repository}/blobs/uploads/"
        empty = {"Content-Length": "0"}
        response = None
        if mounted_from:
            wanted = f"{url}?mount={target.digest}&from={mounted_from}"
            scopes = self._scopes | {scope_of(mounted_from)}
            try:
                response = await self._session.ask("POST", wanted, empty, scopes)
            except (PermissionDenied, NotFound, Unknown):
                response = None  # what may not be read there is sent
        if response is None:
            response = await self._session.ask("POST", url, empty, self._scopes)
        try:
            if response.status_code == 201:
                return None
            minimum = response.headers.get("OCI-Chunk-Min-Length", "")
            return Upload(
                url=self._location(response, ""),
                part_bytes_min=int(minimum[:15]) if minimum.isascii() and minimum.isdigit() else 0,
            )
        finally:
            await close(response)

    async def part(self, upload: Upload, piece: bytes) -> Upload:
        """Send the next bytes. Refused in the middle, it finds out how much arrived, and sends
        the rest."""
        end = upload.offset + len(piece)
        began, attempts = trio.current_time(), 0
        while piece:
            attempts += 1
            try:
                upload = await self._patch(upload, piece)
            except Unanswered as error:
                failure = error.failure
                if failure.status == 404:
                    raise _lost(failure.refusal) from error
                # 416: it has another idea of where this part begins.
                settles = replace(failure, passing=failure.passing or failure.status == 416)
                pause = self._session.pause_before_next(settles, attempts, began)
                if pause is None:
                    raise failure.refusal from error
                await trio.sleep(pause)
                upload = await self._settled(upload, end - len(piece), end, failure.refusal)
            piece = piece[len(piece) - (end - upload.offset) :]
        return upload

    async def status(self, upload: Upload) -> Upload:
        """How much the registry has."""
        try:
            response = await self._session.ask("GET", upload.url, {}, self._scopes)
        except NotFound as gone:
            raise _lost(gone) from gone
        try:
            told = response.headers.get("Range", "")
            return replace(
                upload,
                url=self._location(response, upload.url),
                offset=_end_of(told, upload.offset),
            )
        finally:
            await close(response)

    async def finish(self, upload: Upload, target: Descriptor, last: bytes = b"") -> None:
        """Send the last bytes, if there are any left, and let the registry have the blob."""
        if upload.offset + len(last) != target.size:
            raise InvalidArgument(
                f"{target.digest}: {upload.offset + len(last)} bytes, not {target.size}"
            )
        if last:
            # One request less than a part and an end; where it fails, they come after all.
            refusal = await self._closed(upload, target, last, attempts_max=1)
            if refusal is None:
                return
            known = await self._settled(upload, upload.offset, target.size, refusal)
            upload = await self.part(known, last[known.offset - upload.offset :])
        refusal = await self._closed(upload, target, b"")
        if refusal is not None:
            raise refusal

    async def send(
        self, target: Descriptor, pieces: AsyncIterator[bytes], mounted_from: str = ""
    ) -> None:
        """A whole blob as one stream, which cannot be sent again."""
        upload = await self.begin(target, mounted_from)
        if upload is not None:
            await self._put(upload, target, pieces)

    async def cancel(self, upload: Upload) -> None:
        """Let the registry forget what it has of it."""
        try:
            await close(await self._session.ask("DELETE", upload.url, {}, self._scopes))
        except NotFound:
            pass  # it has

    # -- inside

    async def _patch(self, upload: Upload, piece: bytes) -> Upload:
        headers = {
            "Content-Type": BLOB_TYPE,
            "Content-Length": str(len(piece)),
            "Content-Range": f"{upload.offset}-{upload.offset + len(piece) - 1}",
        }
        response = await self._session.ask_once("PATCH", upload.url, headers, self._scopes, piece)
        try:
            end = upload.offset + len(piece)
            told = response.headers.get("Range", "")
            if told and _end_of(told, end) != end:
                why = f"{place(upload.url)}: the registry has {told[:40]!r}, not {end}"
                raise Unanswered(Failure(OutOfRange(why), status=416))
            return replace(upload, url=self._location(response, upload.url), offset=end)
        finally:
            await close(response)

    async def _closed(
        self, upload: Upload, target: Descriptor, body: bytes, attempts_max: int | None = None
    ) -> Refusal | None:
        """Close an upload; what stood in the way and may pass."""
        try:
            await self._put(upload, target, body, attempts_max)
        except (Unavailable, ResourceExhausted, OutOfRange, NotFound) as refusal:
            # The answer may have been lost, and not the blob.
            if await self._has(target):
                return None
            if isinstance(refusal, NotFound):
                raise _lost(refusal) from refusal
            return refusal
        return None

    async def _settled(self, upload: Upload, begins: int, end: int, why: Refusal) -> Upload:
        """An upload whose part was refused, after asking how much of the part arrived."""
        try:
            known = await self.status(upload)
        except (Unknown, PermissionDenied):
            raise _lost(why) from why
        if not begins <= known.offset <= end:
            raise _lost(why) from why
        return known

    async def _put(
        self,
        upload: Upload,
        target: Descriptor,
        body: bytes | AsyncIterator[bytes],
        attempts_max: int | None = None,
    ) -> None:
        url = upload.url + ("&" if urlsplit(upload.url).query else "?") + f"digest={target.digest}"
        length = len(body) if isinstance(body, bytes) else target.size
        headers = {"Content-Length": str(length), "Content-Type": BLOB_TYPE}
        response = await self._session.ask(
            "PUT", url, headers, self._scopes, body, attempts_max=attempts_max
        )
        try:
            stored = response.headers.get("Docker-Content-Digest", target.digest)
        finally:
            await close(response)
        if stored != target.digest:
            raise FailedPrecondition(
                f"{place(url)}: the registry has {stored[:140]}, not {target.digest}"
            )

    async def _has(self, target: Descriptor) -> bool:
        url = f"{self._session.host.base}/{self._remote.repository}/blobs/{target.digest}"
        try:
            await close(await self._session.ask("HEAD", url, {}, self._scopes))
        except Refusal:
            return False
        return True

    def _location(self, response: "httpx2.Response", before: str) -> str:
        """Where an upload goes on, which may be another server; never from https to http."""
        asked = str(response.url)
        location = response.headers.get("Location", before)
        if not location or len(location) > LOCATION_MAX:
            raise Unknown(f"{place(asked)}: the registry named no place for an upload")
        try:
            url = joined(asked, location)
        except InvalidArgument as error:
            raise Unknown(f"{place(asked)}: an upload's place: {error}") from error
        if origin_of(asked)[0] == "https" and origin_of(url)[0] != "https":
            raise Unknown(f"{place(asked)}: an upload would go from https to {place(url)}")
        return url


def _lost(why: Refusal) -> Aborted:
    return Aborted(f"{why}: the upload is lost; begin anew")


def _end_of(told: str, known: int) -> int:
    """How many bytes a registry has that says `0-99`; what it does not say is as known.

    `0-0` is what it says of one byte, and also of none.
    """
    first, dash, last = told.removeprefix("bytes=").strip().partition("-")
    if first != "0" or not dash or not (last.isascii() and last.isdigit() and len(last) < 16):
        return known if not told else 0
    return min(known, 1) if last == "0" else int(last) + 1
