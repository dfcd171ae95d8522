"""Descriptors, platforms, mounts and processes between their messages and the rooms' own types."""

from collections.abc import Iterable, Sequence

from google.protobuf.any_pb2 import Any as AnyMessage

from ..actors.errors import InvalidArgument
from ..storage.descriptor import Descriptor
from ..storage.digest import Digest
from ..storage.platform import Platform, normalize
from ..storage.snapshotter import Mount
from .proto import runc_pb2, task_types_pb2
from .proto import types_pb2 as pb


def descriptor_to(descriptor: Descriptor) -> pb.Descriptor:
    return pb.Descriptor(
        media_type=descriptor.media_type,
        digest=descriptor.digest,
        size=descriptor.size,
        annotations=dict(descriptor.annotations),
    )


def descriptor_from(message: pb.Descriptor) -> Descriptor:
    return Descriptor(
        media_type=message.media_type,
        digest=Digest(message.digest),
        size=message.size,
        annotations=dict(message.annotations),
    )


def platform_from(message: pb.Platform) -> Platform:
    if not message.os or not message.architecture:
        raise InvalidArgument("a platform needs its os and its architecture: invalid argument")
    return normalize(
        Platform(os=message.os, architecture=message.architecture, variant=message.variant)
    )


def mounts_to(mounts: Iterable[Mount]) -> list[pb.Mount]:
    return [
        pb.Mount(type=m.type, source=m.source, target=m.target, options=list(m.options))
        for m in mounts
    ]


def mounts_from(messages: Iterable[pb.Mount]) -> Sequence[Mount]:
    return [
        Mount(type=m.type, source=m.source, target=m.target, options=tuple(m.options))
        for m in messages
    ]


def process_info(pid: int, exec_id: str | None) -> task_types_pb2.ProcessInfo:
    """One pid of a container; with its exec id where it is one of ours."""
    if not exec_id:
        return task_types_pb2.ProcessInfo(pid=pid)
    details = runc_pb2.ProcessDetails(exec_id=exec_id)
    name = runc_pb2.ProcessDetails.DESCRIPTOR.full_name
    info = AnyMessage(type_url=name, value=details.SerializeToString())
    return task_types_pb2.ProcessInfo(pid=pid, info=info)
