import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from holdfast.api.proto import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("version", "root", "state", "pid", "started_at", "runtime", "cgroups", "kernel", "snapshotter", "containers", "tasks", "images", "sequence", "guarantee")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    CGROUPS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    CONTAINERS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_FIELD_NUMBER: _ClassVar[int]
    version: str
    root: str
    state: str
    pid: int
    started_at: _timestamp_pb2.Timestamp
    runtime: str
    cgroups: str
    kernel: str
    snapshotter: str
    containers: int
    tasks: int
    images: int
    sequence: int
    guarantee: str
    def __init__(self, version: _Optional[str] = ..., root: _Optional[str] = ..., state: _Optional[str] = ..., pid: _Optional[int] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., runtime: _Optional[str] = ..., cgroups: _Optional[str] = ..., kernel: _Optional[str] = ..., snapshotter: _Optional[str] = ..., containers: _Optional[int] = ..., tasks: _Optional[int] = ..., images: _Optional[int] = ..., sequence: _Optional[int] = ..., guarantee: _Optional[str] = ...) -> None: ...

class TreeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TreeResponse(_message.Message):
    __slots__ = ("root",)
    ROOT_FIELD_NUMBER: _ClassVar[int]
    root: TreeNode
    def __init__(self, root: _Optional[_Union[TreeNode, _Mapping]] = ...) -> None: ...

class TreeNode(_message.Message):
    __slots__ = ("name", "kind", "state", "restarts", "mailbox", "current", "current_age_s", "children")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_AGE_S_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    state: str
    restarts: int
    mailbox: int
    current: str
    current_age_s: float
    children: _containers.RepeatedCompositeFieldContainer[TreeNode]
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ..., mailbox: _Optional[int] = ..., current: _Optional[str] = ..., current_age_s: _Optional[float] = ..., children: _Optional[_Iterable[_Union[TreeNode, _Mapping]]] = ...) -> None: ...

class CrashesRequest(_message.Message):
    __slots__ = ("supervisor",)
    SUPERVISOR_FIELD_NUMBER: _ClassVar[int]
    supervisor: str
    def __init__(self, supervisor: _Optional[str] = ...) -> None: ...

class CrashesResponse(_message.Message):
    __slots__ = ("crashes",)
    CRASHES_FIELD_NUMBER: _ClassVar[int]
    crashes: _containers.RepeatedCompositeFieldContainer[Crash]
    def __init__(self, crashes: _Optional[_Iterable[_Union[Crash, _Mapping]]] = ...) -> None: ...

class Crash(_message.Message):
    __slots__ = ("at", "supervisor", "child", "reason", "next_step", "last_message", "state", "mailbox", "traceback")
    AT_FIELD_NUMBER: _ClassVar[int]
    SUPERVISOR_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MAILBOX_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    at: _timestamp_pb2.Timestamp
    supervisor: str
    child: str
    reason: str
    next_step: str
    last_message: str
    state: str
    mailbox: int
    traceback: str
    def __init__(self, at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., supervisor: _Optional[str] = ..., child: _Optional[str] = ..., reason: _Optional[str] = ..., next_step: _Optional[str] = ..., last_message: _Optional[str] = ..., state: _Optional[str] = ..., mailbox: _Optional[int] = ..., traceback: _Optional[str] = ...) -> None: ...

class FaultsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FaultsResponse(_message.Message):
    __slots__ = ("faults",)
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    faults: _containers.RepeatedCompositeFieldContainer[Fault]
    def __init__(self, faults: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("id", "kind", "namespace", "key", "reason", "since", "held")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    namespace: str
    key: str
    reason: str
    since: _timestamp_pb2.Timestamp
    held: bool
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., namespace: _Optional[str] = ..., key: _Optional[str] = ..., reason: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., held: _Optional[bool] = ...) -> None: ...

class RemoveFaultsRequest(_message.Message):
    __slots__ = ("ids", "all")
    IDS_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[str]
    all: bool
    def __init__(self, ids: _Optional[_Iterable[str]] = ..., all: _Optional[bool] = ...) -> None: ...

class RemoveFaultsResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: _containers.RepeatedCompositeFieldContainer[Fault]
    def __init__(self, removed: _Optional[_Iterable[_Union[Fault, _Mapping]]] = ...) -> None: ...

class WhyRequest(_message.Message):
    __slots__ = ("kind", "name", "snapshotter")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    snapshotter: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., snapshotter: _Optional[str] = ...) -> None: ...

class WhyStep(_message.Message):
    __slots__ = ("how", "kind", "name", "flat")
    HOW_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FLAT_FIELD_NUMBER: _ClassVar[int]
    how: str
    kind: str
    name: str
    flat: bool
    def __init__(self, how: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., flat: _Optional[bool] = ...) -> None: ...

class WhyResponse(_message.Message):
    __slots__ = ("kept", "chain", "until", "left_s", "goes", "also_in")
    KEPT_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    LEFT_S_FIELD_NUMBER: _ClassVar[int]
    GOES_FIELD_NUMBER: _ClassVar[int]
    ALSO_IN_FIELD_NUMBER: _ClassVar[int]
    kept: bool
    chain: _containers.RepeatedCompositeFieldContainer[WhyStep]
    until: _timestamp_pb2.Timestamp
    left_s: float
    goes: str
    also_in: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kept: _Optional[bool] = ..., chain: _Optional[_Iterable[_Union[WhyStep, _Mapping]]] = ..., until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., left_s: _Optional[float] = ..., goes: _Optional[str] = ..., also_in: _Optional[_Iterable[str]] = ...) -> None: ...

class KillActorRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class KillActorResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Bind(_message.Message):
    __slots__ = ("source", "target", "read_only")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    read_only: bool
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., read_only: _Optional[bool] = ...) -> None: ...

class CreateContainerRequest(_message.Message):
    __slots__ = ("name", "image", "args", "env", "cwd", "user", "terminal", "hostname", "read_only_root", "binds", "tmpfs", "host_network", "memory_limit", "cpus", "pids_limit", "labels", "snapshotter")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    CWD_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TERMINAL_FIELD_NUMBER: _ClassVar[int]
    HOSTNAME_FIELD_NUMBER: _ClassVar[int]
    READ_ONLY_ROOT_FIELD_NUMBER: _ClassVar[int]
    BINDS_FIELD_NUMBER: _ClassVar[int]
    TMPFS_FIELD_NUMBER: _ClassVar[int]
    HOST_NETWORK_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    PIDS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    image: str
    args: _containers.RepeatedScalarFieldContainer[str]
    env: _containers.RepeatedScalarFieldContainer[str]
    cwd: str
    user: str
    terminal: bool
    hostname: str
    read_only_root: bool
    binds: _containers.RepeatedCompositeFieldContainer[Bind]
    tmpfs: _containers.RepeatedScalarFieldContainer[str]
    host_network: bool
    memory_limit: int
    cpus: float
    pids_limit: int
    labels: _containers.ScalarMap[str, str]
    snapshotter: str
    def __init__(self, name: _Optional[str] = ..., image: _Optional[str] = ..., args: _Optional[_Iterable[str]] = ..., env: _Optional[_Iterable[str]] = ..., cwd: _Optional[str] = ..., user: _Optional[str] = ..., terminal: _Optional[bool] = ..., hostname: _Optional[str] = ..., read_only_root: _Optional[bool] = ..., binds: _Optional[_Iterable[_Union[Bind, _Mapping]]] = ..., tmpfs: _Optional[_Iterable[str]] = ..., host_network: _Optional[bool] = ..., memory_limit: _Optional[int] = ..., cpus: _Optional[float] = ..., pids_limit: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., snapshotter: _Optional[str] = ...) -> None: ...

class CreateContainerResponse(_message.Message):
    __slots__ = ("name", "image")
    NAME_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    image: str
    def __init__(self, name: _Optional[str] = ..., image: _Optional[str] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("filters", "since")
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    filters: _containers.RepeatedScalarFieldContainer[str]
    since: int
    def __init__(self, filters: _Optional[_Iterable[str]] = ..., since: _Optional[int] = ...) -> None: ...

class EventsResponse(_message.Message):
    __slots__ = ("sequence", "envelope", "lost_from")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    LOST_FROM_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    envelope: _types_pb2.Envelope
    lost_from: int
    def __init__(self, sequence: _Optional[int] = ..., envelope: _Optional[_Union[_types_pb2.Envelope, _Mapping]] = ..., lost_from: _Optional[int] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("data", "base_name", "skip_unpack")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BASE_NAME_FIELD_NUMBER: _ClassVar[int]
    SKIP_UNPACK_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    base_name: str
    skip_unpack: bool
    def __init__(self, data: _Optional[bytes] = ..., base_name: _Optional[str] = ..., skip_unpack: _Optional[bool] = ...) -> None: ...

class ImportResponse(_message.Message):
    __slots__ = ("step", "subject", "digest")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    step: str
    subject: str
    digest: str
    def __init__(self, step: _Optional[str] = ..., subject: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, images: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
