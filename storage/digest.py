"""Digests: `algorithm:hex`, the names of content.

The rules and texts are those of OCI's reference library.
"""

from __future__ import annotations

import re

from ..actors.errors import InvalidArgument

HEX_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_FORM = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_HEX = re.compile(r"[a-f0-9]+", re.ASCII)


def fault_of_digest(digest: str) -> str:
    """What is wrong with a digest, in words; empty when it is sound."""
    algorithm, _, encoded = digest.partition(":")
    if not algorithm or not encoded:
        return "invalid checksum digest format"
    if algorithm not in HEX_LENGTHS:
        sound_form = _FORM.fullmatch(digest)
        return "unsupported digest algorithm" if sound_form else "invalid checksum digest format"
    if len(encoded) != HEX_LENGTHS[algorithm]:
        return "invalid checksum digest length"
    return "" if _HEX.fullmatch(encoded) else "invalid checksum digest format"


def check_digest(digest: str, what: str = "digest") -> None:
    """Refuse a digest that is malformed or of an unknown algorithm."""
    if fault := fault_of_digest(digest):
        raise InvalidArgument(f"{what}: {fault}: invalid argument")
