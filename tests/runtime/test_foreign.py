"""Which shim a runtime's name means, and what answers for one that is dead."""

from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import InvalidArgument, NotFound, Unavailable
from holdfast.runtime.foreign import find_binary, is_foreign
from holdfast.runtime.grave import Grave
from holdfast.runtime.shimclient import Exited
from holdfast.runtime.stdio import Stdio


@pytest.mark.parametrize("name", ["", "io.containerd.runc.v2", "io.holdfast.v1"])
def test_our_own_shim_serves_these(name: str) -> None:
    assert not is_foreign(name)


@pytest.mark.parametrize(
    "name", ["io.containerd.runsc.v1", "io.containerd.runc.v1", "/usr/bin/containerd-shim-runc-v2"]
)
def test_another_serves_these(name: str) -> None:
    assert is_foreign(name)


def test_a_name_means_a_binary_in_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "containerd-shim-other-v7"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    assert find_binary("io.containerd.other.v7") == str(binary)
    assert find_binary("other.v7") == str(binary)
    assert find_binary(str(binary)) == str(binary)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "holdfastd")])
    assert find_binary("com.example.other.v7") == str(binary)


@pytest.mark.parametrize("name", ["runc", "a..b", ".", "../x.v1", "./shim"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"full path to the binary"):
        find_binary(name)


@pytest.mark.parametrize("name", ["io.containerd.absent.v9", "/no/such/shim", "/tmp"])
def test_a_binary_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(NotFound, match="not installed"):
        find_binary(name)


async def test_a_grave_tells_of_the_end_and_refuses_the_rest() -> None:
    exit = Exited(exec_id="", pid=7, status=137, exited_at_ns=5)
    grave = Grave("ns", "c", exit, ["e"])
    state = await grave.state(timeout_s=1)
    told = {name: (p.status, p.exit_status, p.lost) for name, p in state.processes.items()}
    assert told == {"": ("stopped", 137, False), "e": ("stopped", 255, True)}
    assert await grave.delete(timeout_s=1) == exit
    assert (await grave.delete("e", timeout_s=1)).status == 255
    with pytest.raises(NotFound):
        await grave.delete("nobody", timeout_s=1)
    with pytest.raises(NotFound, match="already finished"):
        await grave.kill(9, timeout_s=1)
    with pytest.raises(Unavailable, match="died"):
        await grave.start(timeout_s=1)
    with pytest.raises(Unavailable, match="died"):
        await grave.exec("f", b"{}", Stdio(), timeout_s=1)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(grave.serve, lambda _: None)
            await grave.aclose()
