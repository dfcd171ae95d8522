"""The wire of foreign shims: what `start` and `delete` are told and say, in each form."""

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from holdfast.actors.errors import Unavailable, Unimplemented
from holdfast.api.foreignshim import ShimWire
from holdfast.api.proto.shim import bootstrap_pb2, task_v3_pb2
from holdfast.runtime.foreign import Birth, Listening
from holdfast.runtime.shimclient import Exited

BIRTH = Birth(
    id="web",
    namespace="default",
    address="/run/h.sock",
    ttrpc_address="/run/h.sock.ttrpc",
    publish_binary="/usr/bin/holdfastd",
    options={"type_url": "containerd.runc.v1.Options", "value": b"\x08\x01"},
)


@pytest.mark.parametrize(
    ("said", "listening"),
    [
        (b"unix:///run/s/1\n", Listening(address="unix:///run/s/1")),
        (b"/run/s/1", Listening(address="/run/s/1")),
        (
            b'{"version":3,"address":"unix:///run/s/2","protocol":"ttrpc"}',
            Listening(address="unix:///run/s/2", version=3),
        ),
        (
            bootstrap_pb2.BootstrapResult(
                version=3, address="unix:///run/s/3", protocol="ttrpc"
            ).SerializeToString(),
            Listening(address="unix:///run/s/3", version=3),
        ),
    ],
)
def test_each_form_of_an_address_is_read(said: bytes, listening: Listening) -> None:
    assert ShimWire().listening(said) == listening


@pytest.mark.parametrize("said", [b"{no json", b'{"version": 3}', b"\xff\xff"])
def test_what_is_no_address_is_told_as_it_came(said: bytes) -> None:
    with pytest.raises(Unavailable, match="no address"):
        ShimWire().listening(said)


@pytest.mark.parametrize(
    "said",
    [
        b'{"version":3,"address":"unix:///run/s/2","protocol":"grpc"}',
        b'{"version":4,"address":"unix:///run/s/2","protocol":"ttrpc"}',
        b"vsock://3:1024",
        b"",
    ],
)
def test_an_address_that_we_cannot_speak_to_is_refused(said: bytes) -> None:
    with pytest.raises(Unimplemented, match="not implemented"):
        ShimWire().listening(said)


def test_a_shim_is_told_its_options_or_all() -> None:
    options = AnyMessage.FromString(ShimWire().options(BIRTH))
    assert (options.type_url, options.value) == ("containerd.runc.v1.Options", b"\x08\x01")
    params = bootstrap_pb2.BootstrapParams.FromString(ShimWire().params(BIRTH))
    assert (params.instance_id, params.namespace) == ("web", "default")
    assert params.containerd_ttrpc_address == "/run/h.sock.ttrpc"
    assert [extension.value for extension in params.extensions] == [options]


def test_a_delete_tells_the_exit() -> None:
    response = task_v3_pb2.DeleteResponse(pid=7, exit_status=137)
    response.exited_at.seconds = 3
    exit = ShimWire().deleted(response.SerializeToString())
    assert exit == Exited(exec_id="", pid=7, status=137, exited_at_ns=3_000_000_000)
    with pytest.raises(Unavailable, match="no exit"):
        ShimWire().deleted(b"panic: runtime error")
