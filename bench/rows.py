"""Rows of the bench's table: both sides' figures, their ratio, what it should be, whether it is."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `ratio` is ours to theirs, unless the target is about ours alone."""

    name: str
    ours: float
    theirs: float | None
    ratio: float | None
    target: str
    holds: bool


def at_least(name: str, times: float, ours: float, theirs: float) -> Row:
    """Of this figure more is better."""
    ratio = ours / theirs
    return _row(name, ours, theirs, ratio, f"at least {times:g} times", ratio >= times)


def at_most(name: str, times: float, ours: float, theirs: float) -> Row:
    """Of this figure less is better."""
    ratio = ours / theirs
    return _row(name, ours, theirs, ratio, f"at most {times:.3g} times", ratio <= times)


def bound(name: str, limit: float, ours: float, theirs: float | None = None) -> Row:
    """A figure of ours with a limit of its own."""
    ratio = ours / theirs if theirs else None
    return _row(name, ours, theirs, ratio, f"at most {limit:g}", ours <= limit)


def _row(
    name: str, ours: float, theirs: float | None, ratio: float | None, target: str, holds: bool
) -> Row:
    return Row(
        name=name,
        ours=round(ours, 4),
        theirs=None if theirs is None else round(theirs, 4),
        ratio=None if ratio is None else round(ratio, 4),
        target=target,
        holds=holds,
    )


def table(rows: Iterable[Row]) -> str:
    """The rows for people."""
    lines = [f"{'':<58}{'holdfast':>10}{'other':>10}{'ratio':>8}  target"]
    for row in rows:
        theirs = "" if row.theirs is None else f"{row.theirs:.4g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        verdict = "" if row.holds else "   DOES NOT HOLD"
        lines.append(
            f"{row.name:<58}{row.ours:>10.4g}{theirs:>10}{ratio:>8}  {row.target}{verdict}"
        )
    return "\n".join(lines)


def save(rows: Sequence[Row], machine: dict[str, object], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    told = {"machine": machine, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(told, indent=2) + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def worse(before: Sequence[Row], now: Sequence[Row], by: float) -> list[str]:
    """What holds no longer, and what has become worse by more than this part."""
    told = []
    known = {row.name: row for row in before}
    for row in now:
        old = known.get(row.name)
        if old is None:
            continue
        if old.holds and not row.holds:
            told.append(f"{row.name}: held, and does not any more ({row.ratio}, {row.target})")
        elif old.ratio and row.ratio:
            more_is_better = old.target.startswith("at least")
            change = old.ratio / row.ratio if more_is_better else row.ratio / old.ratio
            if change > 1 + by:
                told.append(f"{row.name}: ratio {old.ratio} became {row.ratio}")
    missing = known.keys() - {row.name for row in now}
    return told + [f"{name}: was not measured" for name in sorted(missing)]
