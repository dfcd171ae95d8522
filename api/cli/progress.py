"""How far a pull or a push is, on stderr: bars for a terminal, lines for a pipe, JSON for programs.

    waiting -> downloading -> downloaded -> extracting -> done
    waiting -> pushing -> done                          a layer's way; `exists` leads to done, too

All that is known comes from the daemon's progress events. `Tally` keeps what they mean; the three
displays only show it.
"""

import json
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import click

from ..proto import transfer_types_pb2 as types
from .output import size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Mode = Literal["auto", "bars", "lines", "json"]

REDRAW_S = 0.1
SIGN_OF_LIFE_S = 10.0
KINDS = ("layer", "config", "manifest", "index", "unknown")
MOVING = ("downloading", "pushing")
HERE = ("downloaded", "extracting", "done")
WORDS = {
    "waiting": "waiting",
    "downloading": "downloading",
    "fetching": "downloading",
    "complete": "done",
    "exists": "done",
    "extracting": "extracting",
    "extracted": "done",
    "uploading": "pushing",
    "pushing": "pushing",
    "mounted": "done",
}

progress_option = click.option(
    "--progress",
    type=click.Choice(["auto", "bars", "lines", "json"]),
    default="auto",
    show_default=True,
    help="Bars on a terminal, lines elsewhere, or a JSON object an event; on stderr.",
)


@dataclass(slots=True)
class Row:
    """One blob: what is done with it, and how much of it there is."""

    kind: str
    digest: str
    state: str = "waiting"
    done: int = 0
    total: int = 0

    @property
    def title(self) -> str:
        """As people tell it from others."""
        return self.digest.partition(":")[2][:12] or self.digest[:12]

    @property
    def amount(self) -> str:
        """How much of it has come or gone, in bytes."""
        if not self.total:
            return ""
        if self.state in MOVING or (self.state == "extracting" and self.done):
            return f"{size(self.done)} / {size(self.total)}"
        return size(self.total)


@dataclass(slots=True)
class Tally:
    """All blobs of one image by their names. `unpacks` says that a layer is not done when it
    has come."""

    title: str
    unpacks: bool
    rows: dict[str, Row] = field(default_factory=dict[str, Row])
    moved: int = 0

    def note(self, event: types.Progress) -> tuple[Row, bool] | None:
        """Take an event in; the row that it tells of, and whether that is in another state now."""
        state = WORDS.get(event.event)
        kind, _, digest = event.name.partition("-")
        if state is None or kind not in KINDS or not digest:
            return None
        known = event.name in self.rows
        row = self.rows.setdefault(event.name, Row(kind=kind, digest=digest))
        before = row.state
        if event.event in ("complete", "exists") and kind == "layer" and self.unpacks:
            state = "downloaded"
        row.total = event.total or row.total
        done = row.total if state in ("done", "downloaded") else event.progress
        if before in MOVING and event.event != "exists":
            self.moved += max(0, done - row.done)
        row.state, row.done = state, done
        return row, not known or state != before

    def finish(self) -> None:
        """It went well: nothing is waited for any more."""
        for row in self.rows.values():
            row.state = "done"

    @property
    def blobs(self) -> Sequence[Row]:
        """What people wait for: layers, and what is no part of an image's own documents."""
        return [row for row in self.rows.values() if row.kind in ("layer", "unknown")]


class Display(Protocol):
    """Shows events as they come."""

    def tell(self, event: types.Progress) -> None:
        """Show what one event changed."""
        ...

    def finish(self) -> None:
        """It went well."""
        ...

    def warn(self, text: str) -> None:
        """A word to the user that is no part of the progress."""
        ...


def chosen(mode: Mode) -> Mode:
    """Bars where a person looks on, else lines."""
    if mode != "auto":
        return mode
    return "bars" if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else "lines"


@contextmanager
def shown(mode: Mode, title: str, *, unpacks: bool, quiet: bool = False) -> Generator[Display]:
    """A display, for the length of the block."""
    if quiet:
        yield Quiet()
        return
    tally = Tally(title, unpacks)
    match chosen(mode):
        case "json":
            yield Json()
        case "bars":
            with Bars(tally).drawn() as bars:
                yield bars
        case _:
            yield Lines(tally)


def _write(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _say_of(row: Row) -> None:
    _write(f"{row.kind} {row.digest}: {row.state} {row.amount}".rstrip())


class Quiet:
    """Shows warnings alone."""

    def tell(self, event: types.Progress) -> None:
        pass

    def finish(self) -> None:
        pass

    def warn(self, text: str) -> None:
        _write(f"holdfast: warning: {text}")


class Json(Quiet):
    """An object a line."""

    def tell(self, event: types.Progress) -> None:
        told: dict[str, object] = {"event": event.event}
        if event.name:
            told["name"] = event.name
        if event.parents:
            told["parents"] = list(event.parents)
        if event.HasField("desc"):
            told["digest"] = event.desc.digest
            told["media_type"] = event.desc.media_type
        if event.total:
            told["progress"] = event.progress
            told["total"] = event.total
        _write(json.dumps(told))

    def warn(self, text: str) -> None:
        _write(json.dumps({"event": "warning", "text": text}))


class Lines(Quiet):
    """A line a change, and one now and then while nothing changes but the number of bytes."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._alive_at = time.monotonic()

    def tell(self, event: types.Progress) -> None:
        noted = self._tally.note(event)
        if noted is None:
            return
        row, new = noted
        now = time.monotonic()
        if new or now - self._alive_at >= SIGN_OF_LIFE_S:
            self._alive_at = now
            _say_of(row)

    def finish(self) -> None:
        unsaid = [row for row in self._tally.rows.values() if row.state != "done"]
        self._tally.finish()
        for row in unsaid:
            _say_of(row)


class Bars:
    """A line a layer, redrawn in place, with a line for the whole."""

    def __init__(self, tally: Tally) -> None:
        from rich.console import Console

        self._tally = tally
        self._console: Console = Console(stderr=True, force_terminal=True, highlight=False)
        self._begun = time.monotonic()
        self._drawn_at = 0.0
        self._refresh = self._nothing

    def _nothing(self) -> None:
        pass

    @contextmanager
    def drawn(self) -> Generator["Bars"]:
        """The lines are there from the beginning of the block on, and stay after it."""
        from rich.live import Live

        with Live(
            get_renderable=self.picture,
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as live:
            self._refresh = live.refresh
            yield self

    def tell(self, event: types.Progress) -> None:
        noted = self._tally.note(event)
        now = time.monotonic()
        if (noted and noted[1]) or now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            self._refresh()

    def finish(self) -> None:
        self._tally.finish()
        self._refresh()

    def warn(self, text: str) -> None:
        self._console.print(f"holdfast: warning: {text}", markup=False)

    def picture(self) -> "RenderableType":
        """What is on the screen now: as many layers as there is room for, the busy ones first."""
        from rich.console import Group
        from rich.text import Text

        blobs = self._tally.blobs
        room = max(1, self._console.height - 3)
        hidden = max(0, len(blobs) - room)
        if hidden:
            order = ("downloading", "pushing", "extracting", "downloaded", "waiting", "done")
            busy = sorted(blobs, key=lambda row: order.index(row.state))[: room - 1]
            seen = [row for row in blobs if any(row is one for one in busy)]
            more = Text(f"and {len(blobs) - len(seen)} more", style="dim")
            return Group(self._rows(seen), more, self._whole(blobs))
        return Group(self._rows(blobs), self._whole(blobs))

    def _rows(self, rows: Sequence[Row]) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1), expand=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, min_width=11)
        wide = self._console.width >= 64
        if wide:
            table.add_column(width=min(40, self._console.width - 50))
        table.add_column(no_wrap=True, min_width=21)
        for row in rows:
            cells: list[RenderableType] = [Text(row.title), Text(row.state)]
            if wide:
                total = max(1, row.total)
                full = row.state in HERE and not (row.state == "extracting" and row.done)
                cells.append(ProgressBar(total=total, completed=total if full else row.done))
            cells.append(Text(row.amount))
            table.add_row(*cells)
        return table

    def _whole(self, blobs: Sequence[Row]) -> "RenderableType":
        from rich.text import Text

        ended = sum(row.state == "done" for row in blobs)
        here = sum(row.total if row.state in HERE else row.done for row in blobs)
        total = sum(row.total for row in blobs)
        rate = self._tally.moved / max(0.5, time.monotonic() - self._begun)
        parts = [self._tally.title]
        if blobs:
            parts += [f"{ended} of {len(blobs)} layers", f"{size(here)} / {size(total)}"]
        if self._tally.moved:
            parts.append(f"{size(int(rate))}/s")
        return Text("  ".join(parts), no_wrap=True, overflow="ellipsis")
