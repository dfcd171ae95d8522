"""A step: one RPC as data, the same for both daemons, and the messages that it becomes.

Names are written with placeholders, so that a sequence can be run again in fresh namespaces:

    @ns           the run's own prefix: namespaces are called `@ns-a`, `@ns-b`
    @sha3         the digest of the run's blob number 3
    @kx4000@      the letter k, 4000 times
    Blob(3)       its bytes, or a part of them
    Spec(id, args), Process(args), Rootfs()     a container's own: its cgroup differs by daemon

A script is a list of steps as `repr` shows them; `parse` reads it again.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.load import spec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from holdfast.api.proto.services import (
    containers_pb2,
    content_pb2,
    events_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    tasks_pb2,
    version_pb2,
)

MODULES = (
    containers_pb2, content_pb2, events_pb2, images_pb2, leases_pb2, namespaces_pb2, snapshots_pb2,
    tasks_pb2, version_pb2,
)  # fmt: skip
METHODS = {
    f"{service.name}.{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

CGROUP = f"holdfast-difference-{os.getpid()}"  # runs side by side leave each other alone
SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
SIZES = (11, 9, 70_000, 8, 0)


@dataclass(frozen=True)
class Blob:
    """Bytes of one of the run's blobs, as a step's request names them."""

    number: int
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Spec:
    """A container's OCI spec, as JSON."""

    id: str
    args: tuple[str, ...]


@dataclass(frozen=True)
class Process:
    """The OCI spec of another process in a container, as JSON."""

    args: tuple[str, ...]


@dataclass(frozen=True)
class Rootfs:
    """The directory that all containers have for their root."""


@dataclass(frozen=True)
class Step:
    """One call. `request` is a message's fields by name; a stream has a list of such."""

    method: str
    request: Any = field(default_factory=dict)
    ns: str | None = "@ns-a"
    lease: str | None = None
    stream: str | None = None
    """The name of the Write stream that stays open between steps; None for one of its own."""

    def __repr__(self) -> str:
        rest = "".join(
            f", {name}={value!r}"
            for name, value, usual in (
                ("ns", self.ns, "@ns-a"), ("lease", self.lease, None), ("stream", self.stream, None)
            )
            if value != usual
        )  # fmt: skip
        return f"Step({self.method!r}, {self.request!r}{rest})"


def parse(script: str) -> list[Step]:
    """The steps of a script that was printed."""
    names = {each.__name__: each for each in (Step, Blob, Spec, Process, Rootfs)}
    return eval(script, {"__builtins__": {}}, names)  # a script is a developer's own file


class Run:
    """The names of one run of a sequence, as one of the daemons is told them."""

    def __init__(self, prefix: str, side: str = "", rootfs: str = "") -> None:
        self.prefix = prefix
        self.side = side
        self.rootfs = rootfs

    def blob(self, number: int) -> bytes:
        """All bytes of a blob; no other run has the same, but for the empty one."""
        size = SIZES[number]
        unit = f"{number}{self.prefix} ".encode()
        return (unit * (size // len(unit) + 1))[:size]

    def data(self, part: Blob) -> bytes:
        """The part of a blob that a step names."""
        return self.blob(part.number)[part.start : part.end]

    def spec(self, wanted: Spec) -> bytes:
        """A container's spec, with a cgroup that is this daemon's own."""
        made = spec(wanted.id, wanted.args)
        made["linux"]["cgroupsPath"] = f"/{CGROUP}/{self.side}-{self.prefix}-{wanted.id}"
        return json.dumps(made).encode()

    def digest(self, number: int, algorithm: str = "sha256") -> str:
        """The digest of a blob."""
        return f"{algorithm}:{hashlib.new(algorithm, self.blob(number)).hexdigest()}"

    def text(self, text: str) -> str:
        """The text with its placeholders replaced."""
        if "@" not in text:
            return text
        text = text.replace("@ns", self.prefix)
        text = re.sub(r"@(\w)x(\d+)@", lambda found: found[1] * int(found[2]), text)
        return re.sub(
            r"@sha(512-)?(\d)",
            lambda found: self.digest(int(found[2]), "sha512" if found[1] else "sha256"),
            text,
        )

    def resolved(self, value: Any) -> Any:
        """A request with every placeholder replaced."""
        match value:
            case str():
                return self.text(value)
            case Blob():
                return self.data(value)
            case Spec():
                return self.spec(value)
            case Process():
                return json.dumps({**spec("", value.args)["process"]}).encode()
            case Rootfs():
                return self.rootfs
            case Mapping():
                return {self.text(key): self.resolved(item) for key, item in value.items()}
            case bytes() | int() | None:
                return value
            case Sequence():
                return [self.resolved(item) for item in value]
        raise TypeError(f"a request holds {value!r}")


def fill(message: Message, fields: Mapping[str, Any]) -> Message:
    """Set the message's fields from plain data; returns it."""
    for name, value in fields.items():
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if descriptor.type != FieldDescriptor.TYPE_MESSAGE:
            if descriptor.is_repeated:
                target.extend(value)
            else:
                setattr(message, name, value)
        elif descriptor.message_type.GetOptions().map_entry:
            kind = descriptor.message_type.fields_by_name["value"]
            for key, item in value.items():
                if kind.type == FieldDescriptor.TYPE_MESSAGE:
                    fill(target[key], item)
                else:
                    target[key] = item
        elif descriptor.is_repeated:
            for item in value:
                fill(target.add(), item)
        else:
            target.SetInParent()
            fill(target, value)
    return message


def any_of(kind: str, message: Message) -> dict[str, Any]:
    """A message as a request's Any field."""
    packed = AnyMessage(type_url=kind, value=message.SerializeToString())
    return {"type_url": packed.type_url, "value": packed.value}
