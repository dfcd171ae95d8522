"""The faults of the content store: files that no record names, kept because one may have."""

import time
from collections.abc import Sequence

from .content import ContentStore
from .faults import Fault

KIND = "content file"


class ContentFaults:
    """A `FaultKeeper` over what the content store kept at its opening."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._opened_at_ns = time.time_ns()

    def faults(self) -> Sequence[Fault]:
        """The blobs and ingests that were kept."""
        return [
            Fault(
                kind=KIND,
                namespace="",
                key=name,
                reason="no record names it; a damaged one may have",
                since_ns=self._opened_at_ns,
                held=True,
            )
            for name in sorted(self._content.orphans)
        ]

    async def give_up(self, fault: Fault) -> None:
        """Remove the file, unless somebody has stored the same content since."""
        await self._content.remove_orphan(fault.key)
