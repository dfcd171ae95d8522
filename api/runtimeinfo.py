"""What our shim tells of itself and of its OCI runtime: containerd's RuntimeInfo."""

from google.protobuf.any_pb2 import Any as AnyMessage

from ..runtime.features import read_features
from .identity import REVISION, VERSION
from .proto.types_pb2 import RuntimeInfo, RuntimeVersion
from .runcoptions import runc_options

FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def runtime_info(name: str, options: AnyMessage | None) -> RuntimeInfo:
    """By this name, with these options of a client's. NotFound when the OCI runtime that they name
    is not installed, InvalidArgument when they are not runc's. Blocks."""
    wanted = runc_options(options or AnyMessage())
    features = read_features(wanted.get("binary_name", ""))
    return RuntimeInfo(
        name=name,
        version=RuntimeVersion(version=VERSION, revision=REVISION),
        options=options,
        features=AnyMessage(type_url=FEATURES_URL, value=features) if features else None,
    )
