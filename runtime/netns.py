"""Network namespaces: interfaces put into a container, before its first process runs.

A created task has its namespaces and not yet a running program, so that whoever wants may still
give it a network:

    pid = await tasks.create("default", "web", ...)
    async with Netns.open() as netns:
        await netns.add_pair("hf0", "eth0", pid)              # hf0 here, eth0 in there
        await netns.add_address("eth0", "10.88.0.2/24", pid)
        await netns.set_up("eth0", pid)
        await netns.add_route("default", "10.88.0.1", pid)
    await tasks.start("default", "web")

A `pid` names the namespace of that process; without one it is the host's. An interface inside goes
with its namespace, and takes its peer along.

The work is a thread's: entering a namespace changes the thread, and pyroute2 blocks. It is
imported by the first request, for it takes a quarter of a second.
"""

import errno
import ipaddress
import os
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, assert_never

import pykka

from ..actors.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Refusal,
)
from ..actors.threads import ThreadActor, call_thread, stop_thread
from ..storage.syscalls import setns

CLONE_NEWNET = 0x40000000
NAME_BYTES_MAX = 15

REFUSALS: dict[int, type[Refusal]] = {
    errno.EEXIST: AlreadyExists,
    errno.ENODEV: NotFound,
    errno.ENOENT: NotFound,
    errno.ESRCH: NotFound,
    errno.EPERM: PermissionDenied,
    errno.EACCES: PermissionDenied,
    errno.EINVAL: InvalidArgument,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPair:
    """Make a veth pair: one end here, one in the namespace of `pid`. Sent by the verbs."""

    host_name: str
    name: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAddress:
    """Give an interface an address with its prefix length. Sent by the verbs."""

    name: str
    address: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """Set an interface up. Sent by the verbs."""

    name: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRoute:
    """Send what goes to `destination` by way of `gateway`. Sent by the verbs."""

    destination: str
    gateway: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Delete an interface, and a pair's other end with it. Sent by the verbs."""

    name: str
    pid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListNames:
    """Name the interfaces. Sent by the verbs; answered with them."""

    pid: int | None


Message = AddPair | AddAddress | SetUp | AddRoute | Remove | ListNames


class NetnsThread(ThreadActor):
    """The thread that enters namespaces. Callers use the verbs of `Netns`."""

    def on_receive(self, message: Message) -> Any:
        """One request at a time; what the kernel refuses is a refusal."""
        try:
            match message:
                case AddPair():
                    add_pair(message)
                case AddAddress():
                    with route_socket(message.pid) as route:
                        address, _, length = message.address.partition("/")
                        index = index_of(route, message.name)
                        route.addr("add", index=index, address=address, prefixlen=int(length))
                case SetUp():
                    with route_socket(message.pid) as route:
                        route.link("set", index=index_of(route, message.name), state="up")
                case AddRoute():
                    with route_socket(message.pid) as route:
                        route.route("add", dst=message.destination, gateway=message.gateway)
                case Remove():
                    with route_socket(message.pid) as route:
                        route.link("del", index=index_of(route, message.name))
                case ListNames():
                    with route_socket(message.pid) as route:
                        return [str(link.get_attr("IFLA_IFNAME")) for link in route.get_links()]
                case _:
                    assert_never(message)
        except Exception as error:
            refusal = refusal_of(message, error)
            if refusal is None:
                raise
            raise refusal from error
        return None


class Netns:
    """The verbs. Each is refused with the kernel's reason."""

    def __init__(self, thread: pykka.ActorRef[NetnsThread]) -> None:
        self._thread = thread

    @classmethod
    @asynccontextmanager
    async def open(cls) -> "AsyncGenerator[Netns, None]":
        """A thread for the length of a block."""
        thread = await NetnsThread.spawn()
        try:
            yield cls(thread)
        finally:
            await stop_thread(thread)

    async def add_pair(self, host_name: str, name: str, pid: int) -> None:
        """Make a veth pair: `host_name` in the host, `name` in the namespace of `pid`."""
        for each in (host_name, name):
            check_name(each)
        await self._ask(AddPair(host_name=host_name, name=name, pid=pid))

    async def add_address(self, name: str, address: str, pid: int | None = None) -> None:
        """Give an interface an address: `10.88.0.2/24`."""
        check_address(address)
        await self._ask(AddAddress(name=name, address=address, pid=pid))

    async def set_up(self, name: str, pid: int | None = None) -> None:
        """Set an interface up."""
        await self._ask(SetUp(name=name, pid=pid))

    async def add_route(self, destination: str, gateway: str, pid: int | None = None) -> None:
        """Send what goes to `destination` (or "default") by way of `gateway`."""
        await self._ask(AddRoute(destination=destination, gateway=gateway, pid=pid))

    async def remove(self, name: str, pid: int | None = None) -> None:
        """Delete an interface, and a pair's other end with it."""
        await self._ask(Remove(name=name, pid=pid))

    async def names(self, pid: int | None = None) -> Sequence[str]:
        """The names of the interfaces."""
        names: Sequence[str] = await self._ask(ListNames(pid=pid))
        return names

    async def _ask(self, message: Message) -> Any:
        return await call_thread(self._thread, message, timeout_s=30.0)


def check_name(name: str) -> None:
    """Refuse what the kernel would cut short or misread."""
    if not 0 < len(name.encode()) <= NAME_BYTES_MAX or "/" in name or name.split() != [name]:
        raise InvalidArgument(f"interface name {name!r}")


def check_address(address: str) -> None:
    """Refuse what is not an address with its prefix length."""
    try:
        ipaddress.ip_interface(address)
    except ValueError as error:
        raise InvalidArgument(f"address {address!r}: {error}") from error
    if "/" not in address:
        raise InvalidArgument(f"address {address!r} has no prefix length")


def add_pair(message: AddPair) -> None:
    """The other end is born in its namespace, so that no name here is taken, even briefly."""
    with namespace_of(message.pid) as namespace, route_socket(None) as route:
        peer = {"ifname": message.name, "net_ns_fd": namespace}
        route.link("add", ifname=message.host_name, kind="veth", peer=peer)


@contextmanager
def namespace_of(pid: int | None) -> Generator[int, None, None]:
    """A descriptor of a process's network namespace, or of this thread's."""
    path = "/proc/thread-self/ns/net" if pid is None else f"/proc/{pid}/ns/net"
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def route_socket(pid: int | None) -> Generator[Any, None, None]:
    """A netlink socket in a namespace: it belongs to the one it was made in, for ever."""
    from pyroute2.iproute.linux import IPRoute  # pyright: ignore[reportMissingTypeStubs]

    with namespace_of(None) as home, namespace_of(pid) as namespace:
        if pid is not None:
            setns(namespace, CLONE_NEWNET)
        try:
            route: Any = IPRoute()  # type: ignore[no-untyped-call]
        finally:
            if pid is not None:
                setns(home, CLONE_NEWNET)
    try:
        yield route
    finally:
        route.close()


def index_of(route: Any, name: str) -> int:
    """The index of an interface by its name."""
    found: Sequence[int] = route.link_lookup(ifname=name)
    if not found:
        raise NotFound(f'interface "{name}": not found')
    return found[0]


def refusal_of(message: Message, error: Exception) -> Refusal | None:
    """The refusal that a kernel's error is; None for what is a fault of ours."""
    if isinstance(error, Refusal):
        return error
    code = getattr(error, "code", None) or getattr(error, "errno", None)
    if not isinstance(code, int):
        return None
    return REFUSALS.get(code, FailedPrecondition)(f"{message}: {os.strerror(code)}")
