"""The circuit breaker: who does not answer is not asked again at once.

    CLOSED --failures in a row--> OPEN --time passes--> HALF OPEN --answer--> CLOSED
                                   ^------no answer------+

Open, a call is refused without being made; the pause doubles with each probe that fails. Only a
silence counts: a refusal is an answer.
"""

from dataclasses import dataclass

from ...actors.errors import Unavailable

FAILURES_MAX = 3
PAUSE_FIRST_S = 1.0
PAUSE_CAP_S = 30.0


@dataclass(slots=True)
class Breaker:
    """One other side's. Times are of any clock that does not jump, in seconds."""

    about: str
    failures_max: int = FAILURES_MAX
    failures: int = 0
    pause_s: float = 0.0
    opens_at_s: float = 0.0
    reason: str = ""
    probing: bool = False

    def enter(self, now_s: float) -> None:
        """A call is about to be made: Unavailable while the breaker is open."""
        if not self.pause_s:
            return
        if now_s < self.opens_at_s or self.probing:
            wait_s = max(self.opens_at_s - now_s, 0.0)
            raise Unavailable(
                f"{self.about} does not answer ({self.reason}); it is asked again in {wait_s:.1f} s"
            )
        self.probing = True

    def answered(self) -> None:
        """It answered, well or with a refusal."""
        self.failures, self.pause_s, self.probing, self.reason = 0, 0.0, False, ""

    def failed(self, now_s: float, reason: str) -> None:
        """It did not answer."""
        self.failures += 1
        self.reason = reason
        if self.failures >= self.failures_max:
            self.pause_s = min(max(self.pause_s * 2, PAUSE_FIRST_S), PAUSE_CAP_S)
            self.opens_at_s = now_s + self.pause_s
        self.probing = False

    def withdrawn(self) -> None:
        """The caller has gone away: nothing was learned."""
        self.probing = False
