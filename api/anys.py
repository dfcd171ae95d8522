"""What travels as google.protobuf.Any, and back: events, specs, options, time stamps.

containerd writes the bare message name as type URL (`containerd.events.TaskExit`), without the
`type.googleapis.com/` of other users; readers take both.
"""

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from ..actors.errors import InvalidArgument
from .proto import cgroups_v1_pb2, cgroups_v2_pb2, events_pb2
from .proto.services import images_pb2

SPEC_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
PROCESS_URL: Final = "types.containerd.io/opencontainers/runtime-spec/1/Process"
NS_PER_S: Final = 1_000_000_000
# Messages are found by name in protobuf's pool: those that are packed here must have entered it.
POOLED: Final = (cgroups_v1_pb2, cgroups_v2_pb2, events_pb2, images_pb2)


def timestamp(ns: int) -> Timestamp | None:
    """A moment in nanoseconds since the epoch; None, an absent field, for 0."""
    return Timestamp(seconds=ns // NS_PER_S, nanos=ns % NS_PER_S) if ns else None


def nanoseconds(stamp: Timestamp) -> int:
    """The moment as nanoseconds since the epoch."""
    return stamp.seconds * NS_PER_S + stamp.nanos


def type_name(type_url: str) -> str:
    """The message name in a type URL."""
    return type_url.rpartition("/")[2]


def pack(type_url: str, payload: Mapping[str, Any] | bytes) -> AnyMessage:
    """An Any of the message that the type URL names: from its bytes, or from its fields.

    Fields are given by their protobuf names; a moment may be nanoseconds, a nested message a
    mapping, an Any a pair of type URL and bytes.
    """
    if isinstance(payload, bytes):
        return AnyMessage(type_url=type_url, value=payload)
    descriptor = descriptor_pool.Default().FindMessageTypeByName(type_name(type_url))
    message = message_factory.GetMessageClass(descriptor)()
    _fill(message, payload)
    return AnyMessage(type_url=type_url, value=message.SerializeToString())


def _fill(message: Message, fields: Mapping[str, Any]) -> None:
    known = message.DESCRIPTOR.fields_by_name
    for name, value in fields.items():
        if value is None:
            continue
        field = known[name]
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            _set_plain(message, field, value)
        elif isinstance(value, Message):
            getattr(message, name).CopyFrom(value)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, name).update(value)
        elif field.is_repeated:
            for item in value:
                _fill_one(getattr(message, name).add(), item)
        else:
            _fill_one(getattr(message, name), value)


def _set_plain(message: Message, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(value)
    else:
        setattr(message, field.name, value)


def _fill_one(message: Message, value: Any) -> None:
    message.SetInParent()
    match value:
        case int() if isinstance(message, Timestamp):
            message.seconds, message.nanos = divmod(value, NS_PER_S)
        case (str() as url, bytes() as data) if isinstance(message, AnyMessage):
            message.type_url, message.value = url, data
        case {"type_url": str() as url, "value": bytes() as data} if isinstance(
            message, AnyMessage
        ):
            message.type_url, message.value = url, data
        case Mapping():
            _fill(message, value)  # pyright: ignore[reportUnknownArgumentType]
        case _:
            raise TypeError(f"{message.DESCRIPTOR.full_name} cannot hold {value!r}")


def container_of(event: AnyMessage) -> str:
    """The container that an event of containerd's is about; empty when it is about none."""
    kind = type_name(event.type_url).rpartition(".")[2]
    found = events_pb2.DESCRIPTOR.message_types_by_name.get(kind)
    if found is None or "container_id" not in found.fields_by_name:
        return ""
    try:
        message = message_factory.GetMessageClass(found).FromString(event.value)
    except DecodeError as error:
        raise InvalidArgument(f"{event.type_url}: {error}") from error
    return str(getattr(message, found.fields_by_name["container_id"].name))


def unpack(any_message: AnyMessage, *kinds: type[Message]) -> Message:
    """The message inside, when it is one of these kinds and whole; InvalidArgument otherwise."""
    wanted = type_name(any_message.type_url)
    for kind in kinds:
        if kind.DESCRIPTOR.full_name == wanted:
            try:
                return kind.FromString(any_message.value)
            except DecodeError as error:
                raise InvalidArgument(f"{wanted}: {error}") from error
    names = " or ".join(kind.DESCRIPTOR.full_name for kind in kinds)
    raise InvalidArgument(f"{wanted or 'an empty message'} where {names} is expected")
