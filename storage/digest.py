"""Digests: content's name is the hash of its bytes.

Terms. A *digest* is `<algorithm>:<hex>`, as in the OCI image specification; `sha256` is what
everyone writes, `sha384` and `sha512` are read. The text after the colon is lower-case hex of
the algorithm's length and nothing else, so that a digest is also a safe file name.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import NewType, Protocol

from ..actors.errors import InvalidArgument

Digest = NewType("Digest", str)

HEX_DIGITS: Mapping[str, int] = {"sha256": 64, "sha384": 96, "sha512": 128}
CANONICAL = "sha256"

_FORM = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_HEX = re.compile(r"[a-f0-9]+", re.ASCII)


class Hash(Protocol):
    """What `hashlib` gives, as far as we use it."""

    def update(self, data: bytes, /) -> None:
        """Take these bytes in."""
        ...

    def hexdigest(self) -> str:
        """The hash of all bytes so far."""
        ...


def fault_of_digest(digest: str) -> str:
    """What is wrong with a digest, in OCI's words; empty when it is sound."""
    algorithm, _, encoded = digest.partition(":")
    if not algorithm or not encoded:
        return "invalid checksum digest format"
    if algorithm not in HEX_DIGITS:
        sound_form = _FORM.fullmatch(digest)
        return "unsupported digest algorithm" if sound_form else "invalid checksum digest format"
    if len(encoded) != HEX_DIGITS[algorithm]:
        return "invalid checksum digest length"
    return "" if _HEX.fullmatch(encoded) else "invalid checksum digest format"


def check_digest(digest: str, what: str = "digest") -> None:
    """Refuse a digest that is malformed or of an unknown algorithm."""
    if fault := fault_of_digest(digest):
        raise InvalidArgument(f"{what}: {fault}: invalid argument")


def parse_digest(text: str) -> Digest:
    """The digest this text is, else `InvalidArgument`."""
    if fault_of_digest(text):
        # The text is a stranger's: show no more of it than a digest would need.
        raise InvalidArgument(f'"{text[:140]}" failed validation')
    return Digest(text)


def algorithm_of(digest: Digest) -> str:
    """The part before the colon."""
    return digest.partition(":")[0]


def encoded_of(digest: Digest) -> str:
    """The hex after the colon."""
    return digest.partition(":")[2]


def new_hash(algorithm: str = CANONICAL) -> Hash:
    """A hash that has taken in nothing yet."""
    assert algorithm in HEX_DIGITS
    return hashlib.new(algorithm, usedforsecurity=True)


def digest_from(hash_: Hash, algorithm: str = CANONICAL) -> Digest:
    """The digest of what `hash_` has taken in."""
    return Digest(f"{algorithm}:{hash_.hexdigest()}")


def digest_of(data: bytes, algorithm: str = CANONICAL) -> Digest:
    """The digest of these bytes."""
    hash_ = new_hash(algorithm)
    hash_.update(data)
    return digest_from(hash_, algorithm)
