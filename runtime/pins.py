"""Pins: what one container has in the vault, by the slots of its processes.

    <slot>.pid        the process, for its exit
    <slot>.op         the OCI runtime's execution that makes it, for its result
    <slot>.0          a writing end of its stdin
    <slot>.1, .2      both ends of its stdout and stderr while it lives
    <slot>.1e, .2e    their writing ends afterwards, until there is a reader for what is left

A slot is `init` or `exec-<exec id>`. Where the kernel cannot pin a process, its pid and start time
are written down in the bundle instead; where it cannot pin a FIFO, the descriptors are held by
processes alone. A pin that the kernel refuses is no reason to refuse a container: it is told in the
shim's state.

Standard library alone: the fork server preloads this file.
"""

import os

from . import files, procfs, syscalls
from .orphans import Exit, Orphans
from .vault import Vault, bundle_key

NOTE_PREFIX = "pin-"


class Pins:
    """The pins of one bundle. Every deed may be done again."""

    def __init__(self, vault: Vault | None, bundle: str, orphans: Orphans | None = None) -> None:
        self._vault = vault
        self.orphans = orphans or Orphans()
        self.bundle = bundle
        self._key = bundle_key(bundle)
        self.faults: list[str] = []

    def keep_process(self, name: str, pidfd: int) -> None:
        """Pins a process that is ours to reap."""
        if self._vault is None or not self._vault.keeps_processes:
            self._note(name, pidfd)
            return
        try:
            self._vault.pin_process(self._key, name, pidfd)
        except OSError as error:
            self.faults.append(f"pin {name}: {error}")
            self._note(name, pidfd)

    def keep_fifo(self, name: str, path: str, flags: int) -> None:
        """Opens and pins one end, when there is a vault; see Vault.pin_fifo."""
        if self._vault is None:
            return
        end = os.open(path, flags | os.O_CLOEXEC)
        try:
            self._vault.pin_fifo(self._key, name, end)
        except OSError as error:
            self.faults.append(f"pin {name}: {error}")
        finally:
            os.close(end)

    def open_process(self, name: str) -> int | None:
        """A pidfd of a process; None without a pin, or when a noted one is gone."""
        if self._vault is not None:
            pidfd = self._vault.open_process(self._key, name)
            if pidfd is not None:
                return pidfd
        noted = self.noted(name)
        return None if noted is None else procfs.open_pidfd(noted)

    def noted(self, name: str) -> procfs.Identity | None:
        """Whose exit is to be asked of whoever reaped it: a process that could not be pinned."""
        return procfs.read_identity(self._note_path(name))

    def told(self, name: str) -> Exit | None:
        """How a noted process ended, from whoever reaped it; None when nobody told."""
        noted = self.noted(name)
        return None if noted is None else self.orphans.get(noted)

    def drop(self, *names: str) -> None:
        """Lets go."""
        if self._vault is not None:
            self._vault.unpin(self._key, *names)
        for name in names:
            files.unlink(self._note_path(name))

    def clear(self) -> None:
        """Lets go of all."""
        if self._vault is not None:
            self._vault.clear(self._key)
        for name in os.listdir(self.bundle):
            if name.startswith(NOTE_PREFIX):
                files.unlink(f"{self.bundle}/{name}")

    def _note(self, name: str, pidfd: int) -> None:
        identity = procfs.identity(syscalls.pidfd_pid(pidfd))
        if identity is not None:
            procfs.write_identity(self._note_path(name), identity)

    def _note_path(self, name: str) -> str:
        return f"{self.bundle}/{NOTE_PREFIX}{name}"


def slot(exec_id: str) -> str:
    """The slot of a process; an exec may well be called "init"."""
    return f"exec-{exec_id}" if exec_id else "init"
