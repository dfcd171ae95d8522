"""Interfaces come into the namespace of a process, and what the kernel refuses is a refusal."""

import subprocess
import time
from collections.abc import Iterator

import pytest
import trio

from holdfast.actors.errors import AlreadyExists, InvalidArgument, NotFound
from holdfast.runtime.netns import Netns, check_name

pytestmark = pytest.mark.root


@pytest.fixture
def pid() -> Iterator[int]:
    """A process in a network namespace of its own."""
    process = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    own = subprocess.check_output(["readlink", "/proc/self/ns/net"])
    while subprocess.check_output(["readlink", f"/proc/{process.pid}/ns/net"]) == own:
        time.sleep(0.01)
    yield process.pid
    process.kill()
    process.wait()


async def test_a_pair_joins_the_host_and_the_process(pid: int) -> None:
    async with Netns.open() as netns:
        await netns.add_pair("hftest1", "eth7", pid)
        try:
            assert "hftest1" in await netns.names()
            assert sorted(await netns.names(pid)) == ["eth7", "lo"]
            await netns.add_address("hftest1", "10.251.7.1/24")
            await netns.set_up("hftest1")
            await netns.add_address("eth7", "10.251.7.2/24", pid)
            await netns.set_up("eth7", pid)
            await netns.add_route("default", "10.251.7.1", pid)
            ping = ["nsenter", "-t", str(pid), "-n", "busybox", "ping", "-c1", "-W2", "10.251.7.1"]
            await trio.run_process(ping, capture_stdout=True)
            with pytest.raises(AlreadyExists):
                await netns.add_pair("hftest1", "eth8", pid)
        finally:
            await netns.remove("hftest1")
        assert "hftest1" not in await netns.names()
        assert await netns.names(pid) == ["lo"]


async def test_what_is_not_there_is_not_found(pid: int) -> None:
    async with Netns.open() as netns:
        with pytest.raises(NotFound):
            await netns.set_up("nobody", pid)
        with pytest.raises(NotFound):
            await netns.names(2**22 - 1)


async def test_malformed_requests_are_refused() -> None:
    async with Netns.open() as netns:
        with pytest.raises(InvalidArgument):
            await netns.add_address("lo", "10.0.0.1")
        with pytest.raises(InvalidArgument):
            await netns.add_address("lo", "10.0.0.300/24")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "sixteen-bytes-xx"])
def test_a_name_that_the_kernel_would_misread_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        check_name(name)
