"""Platforms: which of an image's manifests fits this host.

A platform is `os/architecture[/variant]`. Names have many spellings (`x86_64`, `aarch64`);
`normalize` knows one of each, as containerd does. `runnable_on(host)` lists what a host can
run, best first: an amd64 host also runs 386, an arm64 host 32-bit arm, and newer variants run
older ones.
"""

import platform as host_platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..actors.errors import InvalidArgument
from .document import Document

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a manifest's programs run on."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def to_json(self) -> dict[str, object]:
        """As the OCI image specification writes it."""
        value: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            value["os.version"] = self.os_version
        if self.os_features:
            value["os.features"] = list(self.os_features)
        if self.variant:
            value["variant"] = self.variant
        return value

    @classmethod
    def from_document(cls, document: Document) -> "Platform":
        """As the OCI image specification writes it."""
        return cls(
            os=document.text("os"),
            architecture=document.text("architecture"),
            variant=document.text("variant"),
            os_version=document.text("os.version"),
            os_features=document.texts("os.features"),
        )


ARCHITECTURES: Mapping[str, tuple[str, str]] = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
}
SYSTEMS: Mapping[str, str] = {"macos": "darwin"}
# The variant that an unnamed one means; amd64's v1 and arm64's v8 are written as none.
UNNAMED: Mapping[str, str] = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
ARM_VARIANTS = ("v8", "v7", "v6", "v5")
AMD64_VARIANTS = ("v4", "v3", "v2", "")
_WORD = re.compile(r"[A-Za-z0-9_.-]+")


def normalize(platform: Platform) -> Platform:
    """The same platform in the one spelling that comparisons use."""
    system = platform.os.lower()
    named = platform.architecture.lower()
    architecture, implied = ARCHITECTURES.get(named, (named, ""))
    variant = platform.variant.lower() or implied
    if variant.isdigit():
        variant = f"v{variant}"
    if architecture == "arm" and not variant:
        variant = UNNAMED["arm"]
    elif architecture in ("amd64", "arm64") and variant == UNNAMED[architecture]:
        variant = ""
    return Platform(
        os=SYSTEMS.get(system, system),
        architecture=architecture,
        variant=variant,
        os_version=platform.os_version,
        os_features=platform.os_features,
    )


def parse_platform(text: str) -> Platform:
    """The platform that a person wrote: OS/ARCH[/VARIANT], or ARCH alone for Linux."""
    parts = text.split("/")
    if len(parts) > 3 or not all(_WORD.fullmatch(part) for part in parts):
        raise InvalidArgument(f"platform {text!r} is not OS/ARCH[/VARIANT]")
    if len(parts) == 1:
        parts = ["linux", *parts]
    return normalize(Platform(os=parts[0], architecture=parts[1], variant="".join(parts[2:])))


def host() -> Platform:
    """This machine."""
    return normalize(
        Platform(os=host_platform.system().lower(), architecture=host_platform.machine())
    )


def runnable_on(platform: Platform) -> tuple[Platform, ...]:
    """Everything that runs on `platform`, the best first."""
    wanted = normalize(platform)
    system = wanted.os

    def of(architecture: str, variants: Iterable[str]) -> tuple[Platform, ...]:
        return tuple(
            Platform(os=system, architecture=architecture, variant=variant) for variant in variants
        )

    def from_on(order: tuple[str, ...], variant: str) -> tuple[str, ...]:
        return order[order.index(variant) :] if variant in order else (variant,)

    match wanted.architecture:
        case "amd64":
            return of("amd64", from_on(AMD64_VARIANTS, wanted.variant)) + of("386", ("",))
        case "arm64":
            own = (wanted.variant, "") if wanted.variant else ("",)
            return of("arm64", own) + of("arm", ARM_VARIANTS)
        case "arm":
            return of("arm", from_on(ARM_VARIANTS, wanted.variant))
        case other:
            return of(other, (wanted.variant,))


def rank(candidate: Platform, wanted: Platform) -> int | None:
    """How well a candidate fits (0 is best), or `None` when it does not run there."""
    offered = normalize(candidate)
    for place, platform in enumerate(runnable_on(wanted)):
        if (offered.os, offered.architecture, offered.variant) == (
            platform.os,
            platform.architecture,
            platform.variant,
        ):
            return place
    return None


def choose(candidates: Iterable[tuple[Platform, T]], wanted: Platform) -> tuple[T, ...]:
    """What runs on `wanted`, the best first; among equals the order is kept."""
    ranked = [
        (place, value)
        for platform, value in candidates
        if (place := rank(platform, wanted)) is not None
    ]
    return tuple(value for _, value in sorted(ranked, key=lambda pair: pair[0]))
