"""The death matrix in figures: a row for each set of victims, and the cells that failed."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

from .checkers import Violation
from .containers import Plan
from .history import Ended, Harm, Heal, History, Left, Streamed
from .processes import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One blow: who dies, and the containers that live through it."""

    number: int
    victims: tuple[Role, ...]
    plans: tuple[Plan, ...]
    kills: int
    """How often the victims are killed, the later ones while the first is being recovered from."""
    loggers_die: bool = False
    """The loggers are among the victims."""

    @property
    def name(self) -> str:
        """The victims, for the table."""
        return "+".join(self.victims)


@dataclass(slots=True)
class Row:
    """What came of one set of victims, or of all."""

    containers: int = 0
    ended_inside: int = 0
    lost_bytes: int = 0
    extra_bytes: int = 0
    exit_records: int = 0
    codes: int = 0
    order: int = 0
    stuck: int = 0
    other: int = 0

    def add(self, row: "Row") -> None:
        """Take another's figures into this one."""
        for field in fields(Row):
            setattr(self, field.name, getattr(self, field.name) + getattr(row, field.name))


class Tally:
    """The figures of a run."""

    def __init__(
        self, rounds: Sequence[Round], history: History, violations: Sequence[Violation]
    ) -> None:
        self.rows = {r.name: Row() for r in rounds}
        self.left = sum(1 for _ in history.of(Left))
        self._cells = {plan.name: (r.name, plan) for r in rounds for plan in r.plans}
        self._wrong: dict[str, list[Violation]] = defaultdict(list)
        self._count_ends(history)
        for stream in history.of(Streamed):
            row = self._row(stream.subject)
            row.lost_bytes += stream.lost_bytes
            row.extra_bytes += stream.extra_bytes
        for violation in violations:
            self._count(violation)

    @property
    def whole(self) -> Row:
        """All rows in one."""
        whole = Row()
        for row in self.rows.values():
            whole.add(row)
        return whole

    @property
    def inside_share(self) -> float:
        """The share of the containers that ended inside a blackout."""
        return self.whole.ended_inside / max(self.whole.containers, 1)

    def failed_cells(self) -> list[str]:
        """Each container that something was wrong with, by its place in the matrix."""
        lines: list[str] = []
        for name, found in self._wrong.items():
            victims, plan = self._cells[name]
            tty, stdin = "tty" if plan.terminal else "no tty", "stdin" if plan.stdin else "no stdin"
            lines.append(f"{victims} | {plan.state} | {tty} | {stdin}    {name}")
            lines += [f"    {violation}" for violation in found]
        return lines

    def table(self) -> str:
        """The rows as text, with their sum."""
        names = [field.name for field in fields(Row)]
        lines = [("victims", *(name.replace("_", " ") for name in names))]
        for title, row in (*self.rows.items(), ("all", self.whole)):
            lines.append((title, *(str(getattr(row, name)) for name in names)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(names) + 1)]
        text = [
            "  ".join(
                word.rjust(width) if place else word.ljust(width)
                for place, (word, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        share = f"ended inside the blackout: {100 * self.inside_share:.0f} %"
        return "\n".join([*text, f"{share}    left on the host: {self.left}"])

    def _row(self, subject: str) -> Row:
        return self.rows[self._cells[subject][0]]

    def _count_ends(self, history: History) -> None:
        pairs = zip(history.of(Harm), history.of(Heal), strict=False)
        spells = [(harm.at_s, heal.at_s) for harm, heal in pairs]
        inside = {
            ended.subject
            for ended in history.of(Ended)
            if any(begun <= ended.at_s < over for begun, over in spells)
        }
        for name in self._cells:
            row = self._row(name)
            row.containers += 1
            row.ended_inside += name in inside

    def _count(self, violation: Violation) -> None:
        name = violation.subject.split("/")[0].split()[0]
        if name not in self._cells:
            return
        self._wrong[name].append(violation)
        row = self._row(name)
        if violation.text.startswith("wrong code"):
            row.codes += 1
        elif violation.invariant == "I1":
            row.exit_records += 1
        elif violation.invariant == "I8":
            row.order += 1
        elif violation.invariant == "I0":
            row.stuck += 1
        elif violation.invariant != "bytes":
            row.other += 1
