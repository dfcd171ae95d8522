"""What a pull may take of the network, and for how long it waits: the settings, and the meters."""

import math
from dataclasses import dataclass

import trio

# What a meter lets through at once, in seconds of its rate.
BURST_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PullLimits:
    """The settings of all pulls of a host. A rate of 0 is none."""

    blobs_at_once: int = 3
    ranges_at_once: int = 3
    range_bytes: int = 16 << 20
    stall_s: float = 30.0
    bytes_per_s: int = 0
    namespace_bytes_per_s: int = 0


class Meter:
    """Lets so many bytes a second through, however many ask; a rate of 0 lets all through."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self._paid_until_s = -math.inf

    async def take(self, count: int) -> None:
        """Wait until these bytes may have come."""
        if not self.bytes_per_s:
            return
        begins_s = max(self._paid_until_s, trio.current_time() - BURST_S)
        self._paid_until_s = begins_s + count / self.bytes_per_s
        await trio.sleep_until(self._paid_until_s)
