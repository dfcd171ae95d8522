"""TOML as text: what `tomllib` reads, written so that it reads the same again."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import date, time
from typing import Any, cast

BARE = re.compile(r"[A-Za-z0-9_-]+\Z")
INDENT = "  "


def dumps(table: Mapping[str, Any]) -> str:
    """The document of this table, tables below it indented as containerd prints them."""
    return "\n".join(_table(table, ())).lstrip("\n") + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """The lines of one table: its own values first, for they would belong to the last one below."""
    inner = {
        key: cast("dict[str, Any]", value)
        for key, value in table.items()
        if isinstance(value, dict)
    }
    lead = INDENT * max(len(path) - 1, 0)
    if path:
        yield ""
        yield f"{lead}[{'.'.join(map(_key, path))}]"
        lead += INDENT
    for key, value in table.items():
        if key not in inner:
            yield f"{lead}{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        yield from _table(value, (*path, key))


def _key(key: str) -> str:
    return key if BARE.match(key) else _string(key)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _string(value)
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value)
        case date() | time():
            return value.isoformat()
        case list():
            return f"[{', '.join(map(_value, cast('list[object]', value)))}]"
        case dict():
            pairs = cast("dict[str, object]", value).items()
            return f"{{{', '.join(f'{_key(key)} = {_value(inner)}' for key, inner in pairs)}}}"
        case _:
            raise TypeError(f"{value!r} has no form in TOML")
