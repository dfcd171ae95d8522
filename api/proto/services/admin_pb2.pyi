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
    __slots__ = ("data", "base_name", "skip_unpack", "platforms", "all_platforms")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BASE_NAME_FIELD_NUMBER: _ClassVar[int]
    SKIP_UNPACK_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    ALL_PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    base_name: str
    skip_unpack: bool
    platforms: _containers.RepeatedCompositeFieldContainer[_types_pb2.Platform]
    all_platforms: bool
    def __init__(self, data: _Optional[bytes] = ..., base_name: _Optional[str] = ..., skip_unpack: _Optional[bool] = ..., platforms: _Optional[_Iterable[_Union[_types_pb2.Platform, _Mapping]]] = ..., all_platforms: _Optional[bool] = ...) -> None: ...

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
    __slots__ = ("images", "platforms", "all_platforms")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    ALL_PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[str]
    platforms: _containers.RepeatedCompositeFieldContainer[_types_pb2.Platform]
    all_platforms: bool
    def __init__(self, images: _Optional[_Iterable[str]] = ..., platforms: _Optional[_Iterable[_Union[_types_pb2.Platform, _Mapping]]] = ..., all_platforms: _Optional[bool] = ...) -> None: ...

class ExportResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class TagImageRequest(_message.Message):
    __slots__ = ("source", "name")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class TagImageResponse(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class InspectImageRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class InspectImageResponse(_message.Message):
    __slots__ = ("document",)
    DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    document: str
    def __init__(self, document: _Optional[str] = ...) -> None: ...

class ImageUsageRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class ImageUse(_message.Message):
    __slots__ = ("name", "content", "snapshots", "shared")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    name: str
    content: int
    snapshots: int
    shared: int
    def __init__(self, name: _Optional[str] = ..., content: _Optional[int] = ..., snapshots: _Optional[int] = ..., shared: _Optional[int] = ...) -> None: ...

class ImageUsageResponse(_message.Message):
    __slots__ = ("images", "content", "snapshots")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImageUse]
    content: int
    snapshots: int
    def __init__(self, images: _Optional[_Iterable[_Union[ImageUse, _Mapping]]] = ..., content: _Optional[int] = ..., snapshots: _Optional[int] = ...) -> None: ...

class CheckImagesRequest(_message.Message):
    __slots__ = ("names", "verify")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    verify: bool
    def __init__(self, names: _Optional[_Iterable[str]] = ..., verify: _Optional[bool] = ...) -> None: ...

class CheckedPlatform(_message.Message):
    __slots__ = ("platform", "digest", "state", "here", "blobs", "here_bytes", "size_bytes", "unpacked", "missing", "damaged")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HERE_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    HERE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    platform: str
    digest: str
    state: str
    here: int
    blobs: int
    here_bytes: int
    size_bytes: int
    unpacked: _containers.RepeatedScalarFieldContainer[str]
    missing: _containers.RepeatedScalarFieldContainer[str]
    damaged: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, platform: _Optional[str] = ..., digest: _Optional[str] = ..., state: _Optional[str] = ..., here: _Optional[int] = ..., blobs: _Optional[int] = ..., here_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., unpacked: _Optional[_Iterable[str]] = ..., missing: _Optional[_Iterable[str]] = ..., damaged: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckImagesResponse(_message.Message):
    __slots__ = ("name", "digest", "platforms", "missing", "damaged", "good")
    class DamagedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    GOOD_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    platforms: _containers.RepeatedCompositeFieldContainer[CheckedPlatform]
    missing: _containers.RepeatedScalarFieldContainer[str]
    damaged: _containers.ScalarMap[str, str]
    good: bool
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., platforms: _Optional[_Iterable[_Union[CheckedPlatform, _Mapping]]] = ..., missing: _Optional[_Iterable[str]] = ..., damaged: _Optional[_Mapping[str, str]] = ..., good: _Optional[bool] = ...) -> None: ...

class PruneImagesRequest(_message.Message):
    __slots__ = ("all", "filters", "older_than_s", "dry_run")
    ALL_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    OLDER_THAN_S_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    all: bool
    filters: _containers.RepeatedScalarFieldContainer[str]
    older_than_s: float
    dry_run: bool
    def __init__(self, all: _Optional[bool] = ..., filters: _Optional[_Iterable[str]] = ..., older_than_s: _Optional[float] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class PruneImagesResponse(_message.Message):
    __slots__ = ("images", "freed")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[str]
    freed: int
    def __init__(self, images: _Optional[_Iterable[str]] = ..., freed: _Optional[int] = ...) -> None: ...

class MountImageRequest(_message.Message):
    __slots__ = ("name", "directory", "writable", "platform", "snapshotter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    directory: str
    writable: bool
    platform: _types_pb2.Platform
    snapshotter: str
    def __init__(self, name: _Optional[str] = ..., directory: _Optional[str] = ..., writable: _Optional[bool] = ..., platform: _Optional[_Union[_types_pb2.Platform, _Mapping]] = ..., snapshotter: _Optional[str] = ...) -> None: ...

class MountImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnmountImageRequest(_message.Message):
    __slots__ = ("directory",)
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    directory: str
    def __init__(self, directory: _Optional[str] = ...) -> None: ...

class UnmountImageResponse(_message.Message):
    __slots__ = ("mount",)
    MOUNT_FIELD_NUMBER: _ClassVar[int]
    mount: ImageMount
    def __init__(self, mount: _Optional[_Union[ImageMount, _Mapping]] = ...) -> None: ...

class ListImageMountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ImageMount(_message.Message):
    __slots__ = ("directory", "image", "snapshotter", "writable", "stands")
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTTER_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    STANDS_FIELD_NUMBER: _ClassVar[int]
    directory: str
    image: str
    snapshotter: str
    writable: bool
    stands: bool
    def __init__(self, directory: _Optional[str] = ..., image: _Optional[str] = ..., snapshotter: _Optional[str] = ..., writable: _Optional[bool] = ..., stands: _Optional[bool] = ...) -> None: ...

class ListImageMountsResponse(_message.Message):
    __slots__ = ("mounts",)
    MOUNTS_FIELD_NUMBER: _ClassVar[int]
    mounts: _containers.RepeatedCompositeFieldContainer[ImageMount]
    def __init__(self, mounts: _Optional[_Iterable[_Union[ImageMount, _Mapping]]] = ...) -> None: ...

class ConvertImageRequest(_message.Message):
    __slots__ = ("source", "name", "compression", "oci", "platforms", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    OCI_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    compression: str
    oci: bool
    platforms: _containers.RepeatedCompositeFieldContainer[_types_pb2.Platform]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ..., compression: _Optional[str] = ..., oci: _Optional[bool] = ..., platforms: _Optional[_Iterable[_Union[_types_pb2.Platform, _Mapping]]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ConvertImageResponse(_message.Message):
    __slots__ = ("digest", "changed")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    digest: str
    changed: bool
    def __init__(self, digest: _Optional[str] = ..., changed: _Optional[bool] = ...) -> None: ...

class CommitContainerRequest(_message.Message):
    __slots__ = ("container", "name", "author", "message", "changes", "pause", "source_date_epoch")
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_DATE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    container: str
    name: str
    author: str
    message: str
    changes: _containers.RepeatedScalarFieldContainer[str]
    pause: bool
    source_date_epoch: int
    def __init__(self, container: _Optional[str] = ..., name: _Optional[str] = ..., author: _Optional[str] = ..., message: _Optional[str] = ..., changes: _Optional[_Iterable[str]] = ..., pause: _Optional[bool] = ..., source_date_epoch: _Optional[int] = ...) -> None: ...

class CommitContainerResponse(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...
