"""Every method of containerd's API is answered, or stands in a table with its reason."""

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import trio
from google.protobuf import descriptor_pool
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

import holdfast
from holdfast.actors.errors import Refusal
from holdfast.api.grpc.client import Channel
from holdfast.api.host import embedded, open_host
from holdfast.api.proto.generate import proto_files
from holdfast.api.proto.services import events_ttrpc_pb2
from holdfast.api.sockets import serving
from holdfast.api.status import CallFailed
from holdfast.api.ttrpc import NAMESPACE, TtrpcClient

pytestmark = pytest.mark.root

SOURCE = Path(holdfast.__path__[0]).parent
FACTS = json.loads((SOURCE / "holdfast/api/wire_facts.json").read_text())["services"]
REFERENCE = Path(__file__).parents[2] / "docs/reference/api.md"
OVER_TTRPC = "containerd.services.events.ttrpc.v1.Events"
OURS = "holdfast.admin.v1"
IMAGE_STORE = "containerd.types.transfer.ImageStore"
HEALTH = {"grpc.health.v1.Health": {"Check": {}, "Watch": {}}}

# What this host cannot do.
ABSENT: Mapping[str, str] = {
    "containerd.services.tasks.v1.Tasks/Checkpoint": "there is no CRIU",
}
# What is not done yet. Each commit that does one of these takes it out.
OPEN: frozenset[str] = frozenset()
# Where an empty request means something that containerd too answers with UNIMPLEMENTED.
MINIMAL: Mapping[str, Mapping[str, Any]] = {
    "containerd.services.mounts.v1.Mounts/Activate": {
        "name": "every",
        "mounts": [{"type": "tmpfs", "source": "none"}],
        "temporary": True,
    },
    "containerd.services.transfer.v1.Transfer/Transfer": {
        "source": {"type_url": IMAGE_STORE, "value": b"\n\x03one"},
        "destination": {"type_url": IMAGE_STORE, "value": b"\n\x05other"},
    },
}

# A stream of what is to come.
ENDLESS = {"containerd.services.events.v1.Events/Subscribe"}
ENOUGH_S = 5.0

SERVED = {
    name: methods
    for name, methods in FACTS.items()
    if name.startswith("containerd.services.") and name != OVER_TTRPC
} | HEALTH
PATHS = sorted(f"{service}/{method}" for service, methods in SERVED.items() for method in methods)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[Path]:
    config = embedded(tmp_path / "root", tmp_path / "state", {})
    async with open_host(replace(config, address=str(tmp_path / "sock")), serving) as host:
        yield tmp_path / "sock"
        for each in host.activations.list("every"):
            await host.activations.deactivate("every", each.name)


for each in proto_files(SOURCE):  # those of services that nobody serves yet too
    import_module(".".join(each.with_suffix("").parts) + "_pb2")


def classes(path: str) -> tuple[type[Message], type[Message]]:
    service, _, name = path.partition("/")
    method = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    return GetMessageClass(method.input_type), GetMessageClass(method.output_type)


async def code_of(channel: Channel, path: str) -> str:
    """How the method ends; a stream of what is to come does not."""
    request, answer = classes(path)
    metadata = {"containerd-namespace": "every"}
    try:
        async with channel.stream(f"/{path}", answer, metadata, timeout_s=ENOUGH_S) as call:
            await call.send(request(**MINIMAL.get(path, {})))
            await call.end()
            await call.receive()
    except Refusal as error:
        return type(error).__name__
    except CallFailed as error:
        return error.status.code.name
    return "OK"


async def test_every_method_is_answered_or_has_its_reason(address: Path) -> None:
    codes: dict[str, str] = {}

    async def ask(channel: Channel, path: str) -> None:
        codes[path] = await code_of(channel, path)

    async with Channel.connect(address) as channel, trio.open_nursery() as nursery:
        for path in PATHS:
            nursery.start_soon(ask, channel, path)
    silent = {path for path, code in codes.items() if code == "Unimplemented"}
    assert silent == set(ABSENT) | OPEN
    assert [path for path, code in codes.items() if code == "INTERNAL"] == []
    endless = {path for path, code in codes.items() if code == "DeadlineExceeded"}
    assert endless <= ENDLESS  # it ends by itself when an event comes by


async def test_events_are_taken_in_over_ttrpc(address: Path) -> None:
    async with TtrpcClient.connect(f"{address}.ttrpc") as client:
        for method in FACTS[OVER_TTRPC]:
            request = events_ttrpc_pb2.ForwardRequest()
            request.envelope.topic = "/tasks/exit"
            request.envelope.namespace = "every"
            request.envelope.event.type_url = "containerd.events.TaskExit"
            request.envelope.timestamp.GetCurrentTime()
            await client.call(OVER_TTRPC, method, request, Empty, {NAMESPACE: "every"})


def test_the_reference_names_each_service_and_what_it_lacks() -> None:
    rows = re.findall(r"^\| `([\w.]+)`[^|]*\|[^|]*\|([^|]*)\|$", REFERENCE.read_text(), re.M)
    told = dict(rows)
    packages = {name.rpartition(".")[0] for name in [*SERVED, OVER_TTRPC]}
    assert set(told) == packages | {OURS}
    for package, lacks in told.items():
        methods = {path.partition("/")[2] for path in PATHS if path.startswith(f"{package}.")}
        absent = {
            path.partition("/")[2] for path in set(ABSENT) | OPEN if path.startswith(f"{package}.")
        }
        words = set(re.findall(r"\w+", lacks))
        assert words & methods == absent, package
