"""Holdfast: a container daemon and library in which every container is a supervised actor.

The rooms, top to bottom; each imports only those below it:

    api           every way in: the embedded host, gRPC, the command line
    runtime       containers, tasks, shims, cgroups, network namespaces
    storage       metadata, content, snapshots, images, the event log
    supervision   who restarts whom
    actors        mailbox, loop, reference, refusals
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api.host import Host as Host
    from .api.host import open as open

__all__ = ["Host", "open"]


def __getattr__(name: str) -> Any:
    """`holdfast.open` and `holdfast.Host`; the host is imported when it is first asked for, so
    that the fork server and the workers, which live in this package too, start light."""
    if name in __all__:
        from .api import host

        return getattr(host, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
