"""containerd.runc.v1.Options, as clients give them: what our shim is told of its OCI runtime."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from ..actors.errors import InvalidArgument
from .anys import type_name, unpack
from .proto import runc_pb2


def runc_options(given: AnyMessage) -> Mapping[str, Any]:
    """runc's options by their names, in protobuf or, from old clients, in JSON; InvalidArgument
    when they are neither."""
    if not given.value:
        return {}
    kind = runc_pb2.Options.DESCRIPTOR.full_name
    if type_name(given.type_url) == kind and given.value[:1] == b"{":
        try:
            return dict(json.loads(given.value))
        except ValueError as error:
            raise InvalidArgument(f"{kind}: {error}") from error
    message = unpack(given, runc_pb2.Options, runc_pb2.CheckpointOptions)
    if not isinstance(message, runc_pb2.Options):
        return {}
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}
