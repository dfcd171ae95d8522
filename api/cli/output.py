"""What a command prints: a table for people, JSON for programs, a container's bytes as they are."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or a JSON object a line.",
)


def say(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def one_line(text: str) -> str:
    """A stranger's text in one line, with nothing in it that a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))


def write_all(target: int, data: bytes) -> None:
    """Write every byte to a descriptor, however small the pieces it takes. Blocks."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, quiet: bool = False) -> None:
    """Aligned columns under a heading; only the first column of each row when quiet."""
    if quiet:
        for row in rows:
            say(row[0])
        return
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    for line in (columns, *rows):
        say("  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip())


def records(
    columns: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    output_format: str,
    quiet: bool = False,
) -> None:
    """Rows by key: a JSON object a line, or a table whose columns are the keys in capitals."""
    if output_format == "json" and not quiet:
        for row in rows:
            say(json.dumps(row, sort_keys=True, default=str))
        return
    headings = [column.replace("_", " ").upper() for column in columns]
    table(headings, [[text(row.get(column)) for column in columns] for row in rows], quiet=quiet)


def text(value: object) -> str:
    """A value as a table shows it."""
    match value:
        case None | "":
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ",".join(f"{k}={v}" for k, v in sorted(value.items())) or "-"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case list() | tuple():
            return ",".join(str(part) for part in value) or "-"  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        case _:
            return str(value)


def size(count: int) -> str:
    """Bytes as people read them: `1.4 MiB`."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


def bytes_of(option: str, text: str) -> int:
    """A number of bytes that a person wrote: `16m` is 16 MiB; 0 for nothing."""
    scale = {"k": 10, "m": 20, "g": 30}.get(text[-1:].lower(), 0)
    digits = text[:-1] if scale else text
    if text and not (digits.isascii() and digits.isdigit()):
        raise click.UsageError(f"{option} {text!r} is not a number with k, m or g")
    return int(digits or 0) << scale


def moment(seconds: int) -> str:
    """A time stamp in UTC, RFC 3339; empty for none."""
    if not seconds:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def ago(seconds: int, now_s: float) -> str:
    """How long ago, in the largest unit that fits: `3 minutes ago`."""
    if not seconds:
        return ""
    elapsed = max(0, int(now_s - seconds))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if elapsed >= length:
            count = elapsed // length
            return f"{count} {unit}{'s' if count != 1 else ''} ago"
    return f"{elapsed} second{'s' if elapsed != 1 else ''} ago"
