"""The removal of a container by its shim: after a delete, and after a create that came to nothing.

Standard library and cbor2 alone: the fork server preloads this file.
"""

import os
import shutil
import signal
from typing import TYPE_CHECKING, Final

from ..actors import failpoints
from ..actors.errors import Unknown
from ..storage import mounts
from . import cgroup, procfs
from .logger import end_loggers
from .process import Process
from .ptykeeper import end_keepers
from .runner import read_pid

if TYPE_CHECKING:
    from .container import Container

GONE_WITHIN_S: Final = 5.0


async def remove_all(container: "Container", within_s: float) -> None:
    """Leaves nothing of the container but its exit records. May be done again.

    Its first process stays known, so that a delete whose answer was lost is answered again.
    """
    if container.paused:
        cgroup.set_frozen(container.directories, False)
        container.paused = False
    await container.poller.until(
        lambda: not cgroup.kill(container.directories, signal.SIGKILL), GONE_WITHIN_S
    )
    live = [p for p in container.processes.values() if p.is_live]
    await container.poller.until(lambda: not any(p.is_live for p in live), GONE_WITHIN_S)
    await container.wiring.drain_logs(container.processes.values())
    container.unwatch_memory()
    if container.chosen.can_be_removed_by_us(container.id, container.config):
        shutil.rmtree(container.chosen.state_directory(container.id), ignore_errors=True)
    elif container.chosen.has_state(container.id):
        await container.runner.run_plain(
            container.chosen, ["delete", "--force", container.id], within_s
        )
    failpoints.passed("shim.delete.cgroup")
    # Also after the runtime's own delete, which may leave one behind.
    await container.poller.until(lambda: not cgroup.remove(container.directories), GONE_WITHIN_S)
    container.directories = {}
    failpoints.passed("shim.delete.bundle")
    _forget_bundle(container)
    failpoints.passed("shim.delete.forgotten")
    for process in container.processes.values():
        process.release()
    container.processes = {"": container.processes[""]}
    container.pins.clear()
    container.leave_cgroup()


def _forget_bundle(container: "Container") -> None:
    mounts.unmount_all(f"{container.bundle}/rootfs")
    names = os.listdir(container.bundle)
    end_keepers(container.bundle, names)
    end_loggers(container.bundle, names)
    for name in names:
        if name.startswith(("exec-", "init.", "runtime")):
            container.unlink(name)
    shutil.rmtree(f"{container.bundle}/oci", ignore_errors=True)


async def undo_create(container: "Container", process: Process) -> None:
    """After a create that failed, or whose shim died in it: nothing remains."""
    if process.pidfd is not None:
        procfs.kill(process.pidfd)
    directories = cgroup.directories(read_pid(container.pid_file(""))) or dict(
        container.directories
    )
    runtime = container.runtime
    if runtime is not None and runtime.has_state(container.id):
        try:
            await container.runner.run_plain(
                container.chosen, ["delete", "--force", container.id], GONE_WITHIN_S
            )
        except Unknown:
            shutil.rmtree(runtime.state_directory(container.id), ignore_errors=True)
    if directories:
        await container.poller.until(
            lambda: not cgroup.kill(directories, signal.SIGKILL), GONE_WITHIN_S
        )
        await container.poller.until(lambda: not cgroup.remove(directories), GONE_WITHIN_S)
    container.unwatch_memory()
    process.release()
    container.directories = {}
    container.processes.clear()
    container.pins.clear()
    container.leave_cgroup()
    _forget_bundle(container)
    container.save()
