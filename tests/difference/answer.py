"""What a daemon answered, as plain data in which the two may be compared.

Times become `<time>`, pids and the numbers of snapshot directories the order in which they were
first seen, places below a daemon's base `<base>`. Everything else stays as it came.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from holdfast.api.proto import events_pb2, runc_pb2
from holdfast.api.proto.services import images_pb2
from holdfast.api.proto.services.content_pb2 import ListStatusesResponse
from holdfast.api.proto.services.tasks_pb2 import ListPidsResponse, ListTasksResponse

from .step import CGROUP, SPEC_URL

# Messages inside an Any are found by name: these modules must have entered protobuf's pool.
POOLED = (events_pb2, images_pb2, runc_pb2)
GO_ZERO_S = -62135596800
PIDS = ("pid",)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: the code and words of a refusal, or what was answered."""

    code: str = "OK"
    message: str = ""
    answer: Any = None

    def __str__(self) -> str:
        if self.code == "OK" and not self.message:
            return f"{self.answer}"
        return f"{self.code}: {self.message}" + (f" after {self.answer}" if self.answer else "")


class Normal:
    """The normal form of one daemon's answers in one run."""

    def __init__(self, base: Path) -> None:
        self._base = re.escape(str(base))
        self._snapshots: dict[str, int] = {}
        self._pids: dict[int, int] = {}

    def text(self, text: str) -> str:
        """A text without what only this daemon has in it."""
        text = re.sub(self._base + r"/[\w./-]*?/snapshots/(\d+)", self._snapshot, text)
        bundles = r"/state/(?:tasks|io\.containerd\.runtime\.v2\.task)/"
        return re.sub(self._base + bundles, "<bundles>/", text)

    def _snapshot(self, found: re.Match[str]) -> str:
        number = self._snapshots.setdefault(found[0], len(self._snapshots))
        return f"<snapshot {number}>"

    def plain(self, message: Message) -> Any:
        """A message as plain data."""
        if isinstance(message, Timestamp):
            seconds = message.seconds
            return "<never>" if seconds == GO_ZERO_S or not seconds else "<time>"
        if isinstance(message, AnyMessage):
            return self._any(message)
        if isinstance(message, ListTasksResponse):
            message.tasks.sort(key=lambda one: one.id)  # containerd's order is by chance
        if isinstance(message, ListStatusesResponse):
            message.statuses.sort(key=lambda one: one.ref)  # so is that of its ingests
        if isinstance(message, ListPidsResponse):
            message.processes.sort(key=lambda one: (one.info.value, one.pid))
        return {
            field.name: self._field(field, value)
            for field, value in message.ListFields()
            if not _is_never(value)
        }

    def _field(self, field: FieldDescriptor, value: Any) -> Any:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            return {key: self._value(field, value[key]) for key in sorted(value)}
        if field.is_repeated:
            return [self._value(field, item) for item in value]
        return self._value(field, value)

    def _value(self, field: FieldDescriptor, value: Any) -> Any:
        if isinstance(value, Message):
            return self.plain(value)
        if field.name in PIDS and value:
            return f"<pid {self._pids.setdefault(value, len(self._pids))}>"
        return self.text(value) if isinstance(value, str) else value

    def _any(self, message: AnyMessage) -> Any:
        if message.type_url == SPEC_URL and CGROUP.encode() in message.value:
            value = re.sub(CGROUP.encode() + rb"/\w+-", CGROUP.encode() + b"/", message.value)
            return {"type_url": message.type_url, "value": value}
        name = message.type_url.rpartition("/")[2]
        try:
            kind = descriptor_pool.Default().FindMessageTypeByName(name)
            inner = message_factory.GetMessageClass(kind)()
            inner.ParseFromString(message.value)
        except (KeyError, DecodeError):
            return {"type_url": message.type_url, "value": message.value}
        return {"type_url": message.type_url, "value": self.plain(inner)}


def _is_never(value: Any) -> bool:
    """A Go daemon sends the zero time where there is none; clients see the same in both."""
    return isinstance(value, Timestamp) and value.seconds in (GO_ZERO_S, 0)
