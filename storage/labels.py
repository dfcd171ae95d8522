"""Labels and identifiers in requests: what they may look like, how labels change.

The rules and the texts of refusals are those that containerd's clients know.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from ..actors.errors import FailedPrecondition, InvalidArgument

Labels = Mapping[str, str]

IDENTIFIER_BYTES_MAX = 76
IDENTIFIER = r"^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$"
_IDENTIFIER = re.compile(IDENTIFIER.removeprefix("^").removesuffix("$"), re.ASCII)

LABEL_BYTES_MAX = 4096
LABEL_KEY_SHOWN_MAX = 64

# On an image: it stays whatever is pruned. CRI sets it on pinned images.
PIN_LABEL, PINNED = "io.cri-containerd.pinned", "pinned"


ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
    '"': '\\"', "\\": "\\\\",
}  # fmt: skip


def quoted(text: str) -> str:
    """The text in double quotes, as refusals show names: Go's %q."""
    return f'"{"".join(map(_shown, text))}"'


def _shown(rune: str) -> str:
    if rune in ESCAPES:
        return ESCAPES[rune]
    if rune == " " or unicodedata.category(rune)[0] in "LMNPS":
        return rune
    point = ord(rune)
    if point < 0x80:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def check_identifier(identifier: str) -> None:
    """Refuse what is not safe as a path component, as a host name, and in a topic."""
    if not identifier:
        raise InvalidArgument("identifier must not be empty: invalid argument")
    if len(identifier.encode("utf-8", "surrogatepass")) > IDENTIFIER_BYTES_MAX:
        raise InvalidArgument(
            f"identifier {quoted(identifier)} greater than maximum length"
            f" ({IDENTIFIER_BYTES_MAX} characters): invalid argument"
        )
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidArgument(
            f"identifier {quoted(identifier)} must match {IDENTIFIER}: invalid argument"
        )


def check_namespace(namespace: str) -> None:
    """Refuse a request without a namespace, or with one that is no identifier."""
    if not namespace:
        raise FailedPrecondition("namespace is required: failed precondition")
    try:
        check_identifier(namespace)
    except InvalidArgument as error:
        raise InvalidArgument(f"namespace validation: {error}") from error


def check_label(key: str, value: str) -> None:
    """Refuse a label that is larger than a label may be."""
    size = len(key.encode()) + len(value.encode())
    if size > LABEL_BYTES_MAX:
        shown = key.encode()[:LABEL_KEY_SHOWN_MAX].decode(errors="ignore")
        raise InvalidArgument(
            f"label key and value length ({size} bytes) greater than maximum size"
            f" ({LABEL_BYTES_MAX} bytes), key: {shown}: invalid argument"
        )


def check_labels(field: str, labels: Labels) -> None:
    """Refuse when a label is too large; `field` says whose labels they are."""
    for key, value in labels.items():
        try:
            check_label(key, value)
        except InvalidArgument as error:
            raise InvalidArgument(f"{field}: {error}") from error


def stored_labels(labels: Labels) -> dict[str, str]:
    """The labels as they are kept: one with an empty value is no label; it needs a key."""
    kept = {key: value for key, value in labels.items() if value}
    if "" in kept:
        raise InvalidArgument(f'failed to set label ""={quoted(kept[""])}: key required')
    return kept


def masked_labels(old: Labels, new: Labels, paths: Sequence[str]) -> dict[str, str]:
    """The labels after an update of `paths`: `labels` replaces all, `labels.<key>` sets one.

    No paths at all means all labels. A key that `new` lacks is deleted.
    """
    if not paths or "labels" in paths:
        return stored_labels(new)
    result = dict(old)
    for path in paths:
        if path.startswith("labels."):
            key = path.removeprefix("labels.")
            result[key] = new.get(key, "")
    return stored_labels(result)


def check_label_paths(paths: Sequence[str], about: str) -> None:
    """Refuse an update of anything but labels; `about` says of what."""
    for path in paths:
        if path != "labels" and not path.startswith("labels."):
            raise InvalidArgument(
                f"cannot update {quoted(path)} field on {about}: invalid argument"
            )


def map_field(values: Labels, path: Sequence[str]) -> tuple[str, bool]:
    """What a filter sees of labels: the rest of the path, dots and all, is one key."""
    key = ".".join(path)
    return values.get(key, ""), key in values
