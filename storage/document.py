"""A JSON document from outside, read by type and within bounds.

Indexes, manifests and configs are written by strangers. `Document` answers typed questions
about one: a key that is absent or null is the empty value, as Go's readers have it; a key of
another type than asked is `InvalidArgument`. Nothing here guesses.
"""

import json
from typing import cast

from ..actors.errors import InvalidArgument, ResourceExhausted

BYTES_MAX = 8 << 20
ITEMS_MAX = 65_536


class Document:
    """One JSON object; `what` names it in refusals."""

    __slots__ = ("_values", "what")

    def __init__(self, values: dict[str, object], what: str) -> None:
        self._values = values
        self.what = what

    @classmethod
    def parse(cls, raw: bytes, what: str, bytes_max: int = BYTES_MAX) -> "Document":
        """The object that `raw` is the text of."""
        value = parse_json(raw, what, bytes_max)
        if not isinstance(value, dict):
            raise InvalidArgument(f"{what}: not a JSON object")
        return cls(cast("dict[str, object]", value), what)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def text(self, key: str) -> str:
        """A string; absent is empty."""
        value = self._values.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InvalidArgument(f"{self.what}: {key} is not a string")
        return value

    def number(self, key: str) -> int:
        """A whole number of 63 bits, not negative; absent is 0."""
        value = self._values.get(key)
        if value is None:
            return 0
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise InvalidArgument(f"{self.what}: {key} is not a whole number")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent is empty."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise InvalidArgument(f"{self.what}: {key} is not a list of strings")
        return tuple(cast("list[str]", values))

    def text_map(self, key: str) -> dict[str, str]:
        """A mapping of strings to strings; absent is empty."""
        values = self._mapping(key)
        if not all(isinstance(value, str) for value in values.values()):
            raise InvalidArgument(f"{self.what}: {key} is not a map of strings")
        return cast("dict[str, str]", dict(values))

    def keys(self, key: str) -> tuple[str, ...]:
        """The keys of a mapping, as Go writes a set; absent is empty."""
        return tuple(self._mapping(key))

    def child(self, key: str) -> "Document":
        """The object under a key; absent is an empty one."""
        return Document(self._mapping(key), f"{self.what}: {key}")

    def children(self, key: str) -> tuple["Document", ...]:
        """A list of objects; absent is empty."""
        what = f"{self.what}: {key}"
        return tuple(_object(value, what) for value in self._list(key))

    def _list(self, key: str) -> list[object]:
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise InvalidArgument(f"{self.what}: {key} is not a list")
        values = cast("list[object]", value)
        if len(values) > ITEMS_MAX:
            raise ResourceExhausted(f"{self.what}: {key} has more than {ITEMS_MAX} items")
        return values

    def _mapping(self, key: str) -> dict[str, object]:
        value = self._values.get(key)
        if value is None:
            return {}
        values = _object(value, f"{self.what}: {key}")._values
        if len(values) > ITEMS_MAX:
            raise ResourceExhausted(f"{self.what}: {key} has more than {ITEMS_MAX} items")
        return values


def _object(value: object, what: str) -> Document:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{what} is not an object")
    return Document(cast("dict[str, object]", value), what)


def parse_json(raw: bytes, what: str, bytes_max: int = BYTES_MAX) -> object:
    """The value that `raw` is the text of; any failure to read it is a refusal."""
    if len(raw) > bytes_max:
        raise ResourceExhausted(f"{what}: {len(raw)} bytes, at most {bytes_max} are read")
    try:
        value: object = json.loads(raw)
    # Deep nesting is a RecursionError; wrong UTF-8 and numbers without end are ValueErrors.
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what}: not readable as JSON: {error}") from error
    return value


def parse_objects(raw: bytes, what: str, bytes_max: int = BYTES_MAX) -> tuple[Document, ...]:
    """The list of objects that `raw` is the text of."""
    return Document({"list": parse_json(raw, what, bytes_max)}, what).children("list")


def canonical_json(value: object) -> bytes:
    """Compact JSON, the same bytes for the same value; no key is sorted, order is the value's."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
