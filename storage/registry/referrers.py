"""Referrers: which manifests say of a manifest that they are about it (OCI distribution 1.1).

A registry answers the referrers API with an index, perhaps in pages; one that does not know it may
have the same index under the tag `sha256-<hex>`, which clients keep there. No index means nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from ...actors.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unknown,
)
from ..descriptor import OCI_INDEX, Descriptor, read_index
from ..digest import Digest
from .errors import place
from .hosts import Remote, joined
from .transport import read

if TYPE_CHECKING:
    import httpx2

BYTES_MAX = 8 << 20
PAGES_MAX = 100
ENTRIES_MAX = 10_000

Asked = Callable[..., "AbstractAsyncContextManager[httpx2.Response]"]


class Referrers:
    """Asks one repository; `asked` sends a request to whoever may be asked."""

    def __init__(self, remote: Remote, asked: Asked) -> None:
        self._remote = remote
        self._asked = asked

    async def of(self, digest: Digest, artifact_type: str) -> Sequence[Descriptor]:
        """Who refers to it, each once."""
        try:
            found = await self._by_api(digest, artifact_type)
        except (NotFound, FailedPrecondition, Unknown):
            found = await self._by_tag(digest)
        if artifact_type:
            # A registry may filter, and need not.
            found = [one for one in found if one.artifact_type == artifact_type]
        return list({one.digest: one for one in found}.values())

    async def _by_api(self, digest: Digest, artifact_type: str) -> Sequence[Descriptor]:
        query: Mapping[str, str] | None = {"artifactType": artifact_type} if artifact_type else {}
        found: list[Descriptor] = []
        for _ in range(PAGES_MAX):
            async with self._asked(
                {"pull", "referrers"},
                "GET",
                f"referrers/{digest}",
                {"Accept": OCI_INDEX},
                None,
                query,
            ) as response:
                what = f"{self._remote.text}: {place(str(response.url))}"
                media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
                if media_type != OCI_INDEX:
                    # A page for people, of a server that does not know what was asked.
                    raise NotFound(f"{what}: {media_type[:100]!r} is no list of referrers")
                found += read_index(await read(response, BYTES_MAX, what), what)
                query = next_page(response.headers.get("Link", ""), str(response.url))
            if query is None:
                return found
            if len(found) > ENTRIES_MAX:
                break
        raise ResourceExhausted(f"{self._remote.text}: more referrers of {digest} than are read")

    async def _by_tag(self, digest: Digest) -> Sequence[Descriptor]:
        # A tag has at most 128 characters, of which the algorithm may take 32 and the hash 64.
        algorithm, _, encoded = digest.partition(":")
        path = f"manifests/{algorithm[:32]}-{encoded[:64]}"
        try:
            async with self._asked(
                {"pull", "resolve"}, "GET", path, {"Accept": OCI_INDEX}
            ) as response:
                what = f"{self._remote.text}: {place(str(response.url))}"
                return read_index(await read(response, BYTES_MAX, what), what)
        except NotFound:
            return []


def next_page(link: str, url: str) -> Mapping[str, str] | None:
    """The query of the page that a Link header names as the next; None where there is none.

    Only its query is heeded: the page is asked of the same place.
    """
    for one in link.split(","):
        target, _, parameters = one.strip().partition(">")
        if target.startswith("<") and 'rel="next"' in parameters.replace("rel=next", 'rel="next"'):
            try:
                split = urlsplit(joined(url, target[1:]))
            except InvalidArgument:
                return None
            return dict(
                name_value for name_value in parse_qsl(split.query) if name_value[0] != "ns"
            )
    return None
