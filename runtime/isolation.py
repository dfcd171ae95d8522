"""Isolation: the mount namespace in which a shim keeps its container's mounts.

Standard library alone: the fork server preloads this file.
"""

from ..storage import syscalls as kernel
from . import cgroup


def isolate(host_namespace: int) -> None:
    """Puts us into a new mount namespace, in which crun finds cgroups that it knows.

    The root filesystem is mounted there; the container takes it along into its own.
    """
    # From the host's, whatever another container of ours has made of ours.
    kernel.setns(host_namespace, kernel.CLONE_NEWNS)
    kernel.unshare(kernel.CLONE_NEWNS)
    # Slave, not private: what the host unmounts must not live on through us.
    kernel.mount(None, "/", None, kernel.MS_SLAVE | kernel.MS_REC)
    if cgroup.layout() is cgroup.Layout.HYBRID:
        # crun refuses a hybrid host where the unified tree has a controller. Unmounting it
        # would do too, but then crun makes directories in the tmpfs below, which is shared.
        kernel.mount("tmpfs", cgroup.HYBRID_MOUNT, "tmpfs", 0, "size=64k,mode=0755")
