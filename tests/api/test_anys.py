from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument
from holdfast.api.anys import nanoseconds, pack, timestamp, type_name, unpack
from holdfast.api.proto import cgroups_v1_pb2, events_pb2, runc_pb2
from holdfast.api.proto.services import images_pb2
from holdfast.api.services.events import to_envelope
from holdfast.storage.containers import Container, Containers, Opaque, Runtime
from holdfast.storage.descriptor import Descriptor
from holdfast.storage.images import Image, Images
from holdfast.storage.namespaces import Namespaces
from holdfast.storage.store import Store


@given(st.integers(min_value=1, max_value=2**62))
def test_a_moment_survives_the_wire_to_the_nanosecond(ns: int) -> None:
    stamp = timestamp(ns)
    assert stamp is not None
    assert nanoseconds(stamp) == ns


def test_no_moment_is_an_absent_field() -> None:
    assert timestamp(0) is None


def test_an_event_is_packed_from_its_fields() -> None:
    packed = pack(
        "containerd.events.TaskCreate",
        {
            "container_id": "web",
            "rootfs": [{"type": "overlay", "source": "overlay", "options": ["ro"]}],
            "io": {"stdin": "", "stdout": "/out", "terminal": True},
            "pid": 7,
        },
    )
    assert packed.type_url == "containerd.events.TaskCreate"
    event = events_pb2.TaskCreate.FromString(packed.value)
    assert (event.container_id, event.pid, event.io.stdout, event.io.terminal) == (
        "web", 7, "/out", True,
    )  # fmt: skip
    assert list(event.rootfs[0].options) == ["ro"]


def test_moments_labels_and_anys_are_packed_where_a_message_stands() -> None:
    exited = pack("containerd.events.TaskExit", {"id": "x", "exited_at": 1_500_000_000})
    assert events_pb2.TaskExit.FromString(exited.value).exited_at == Timestamp(
        seconds=1, nanos=500_000_000
    )
    image = pack("containerd.services.images.v1.ImageCreate", {"name": "n", "labels": {"a": "b"}})
    assert dict(images_pb2.ImageCreate.FromString(image.value).labels) == {"a": "b"}
    runtime = {"name": "r", "options": {"type_url": "t", "value": b"v"}}
    made = pack("containerd.events.ContainerCreate", {"id": "c", "runtime": runtime})
    assert events_pb2.ContainerCreate.FromString(made.value).runtime.options == AnyMessage(
        type_url="t", value=b"v"
    )


def test_bytes_are_passed_as_they_are() -> None:
    packed = pack("type.googleapis.com/foreign.Message", b"\x01\x02")
    assert (packed.type_url, packed.value) == ("type.googleapis.com/foreign.Message", b"\x01\x02")


def test_absent_values_and_repeated_numbers_are_packed() -> None:
    packed = pack(
        "io.containerd.cgroups.v1.Metrics",
        {"cpu": {"usage": {"total": 5, "per_cpu": [1, 2]}}, "memory": None},
    )
    metrics = cgroups_v1_pb2.Metrics.FromString(packed.value)
    assert list(metrics.cpu.usage.per_cpu) == [1, 2]
    assert not metrics.HasField("memory")


def test_a_value_that_does_not_fit_is_a_fault() -> None:
    with pytest.raises(TypeError, match="Timestamp"):
        pack("containerd.events.TaskExit", {"exited_at": "yesterday"})


def test_a_message_is_unpacked_by_its_name_with_or_without_a_host() -> None:
    options = runc_pb2.Options(binary_name="crun")
    for url in ("containerd.runc.v1.Options", "type.googleapis.com/containerd.runc.v1.Options"):
        given_any = AnyMessage(type_url=url, value=options.SerializeToString())
        assert unpack(given_any, runc_pb2.Options) == options
    assert type_name("a/b/c.D") == "c.D"
    with pytest.raises(InvalidArgument, match="is expected"):
        unpack(AnyMessage(type_url="else"), runc_pb2.Options)


async def test_every_event_that_records_emit_is_a_message_that_clients_know(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "db") as store:
        namespaces, images, containers = Namespaces(store), Images(store), Containers(store)
        await namespaces.create("n", {"a": "b"})
        await namespaces.update("n", {"a": "c"})
        target = Descriptor(media_type="m", digest="sha256:" + "0" * 64, size=1)
        image = Image(name="i", target=target, labels={"a": "b"})
        await images.create("n", image)
        await images.update("n", image)
        await images.delete("n", "i")
        spec = Opaque(type_url="s", value=b"{}")
        runtime = Runtime(name="r", options=Opaque(type_url="o", value=b""))
        container = Container(id="c", runtime=runtime, spec=spec, labels={"a": "b"})
        await containers.create("n", container)
        await containers.update("n", container, ["labels"])
        await containers.delete("n", "c")
        await namespaces.delete("n")
        events = await store.events.read(0)
    assert len(events) == 9
    for event in events:
        assert to_envelope(event).event.value
