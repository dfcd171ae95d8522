"""The OCI runtime: which program, its command lines, its words when it fails.

Nothing here runs anything or waits; the shim does. crun and runc take the same words, and crun
keeps its own state in a way that we know: there the start is one byte into a FIFO and the removal
is ours, which saves two executions per container.

Standard library alone: the fork server preloads this file.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from ..actors.errors import InvalidArgument, NotFound
from . import procfs

PREFERRED: Final = ("crun", "runc")
CAP_SYS_RESOURCE: Final = 24
DETACHED: Final = "--detach"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One OCI runtime as one container uses it.

    `program` is executed, `name` is told in errors. `root` is where it keeps its state.
    `shim_cgroup` is not for it: there the shim is accounted for.
    """

    program: str
    name: str
    root: str
    systemd_cgroup: bool = False
    no_pivot_root: bool = False
    no_new_keyring: bool = False
    shim_cgroup: str = ""

    def create(self, id: str, bundle: str, pid_file: str, console: str, log: str) -> list[str]:
        """Makes the container; its first process waits to be started."""
        words = ["create", "--bundle", bundle, "--pid-file", pid_file]
        if console:
            words += ["--console-socket", console]
        if self.no_pivot_root:
            words.append("--no-pivot")
        if self.no_new_keyring:
            words.append("--no-new-keyring")
        return self.command(log, *words, id)

    def exec(self, id: str, process: str, pid_file: str, console: str, log: str) -> list[str]:
        """Runs a further process and waits for it: ends as it does.

        But runc gives a terminal away only when it detaches, and must be stood in for.
        """
        words = ["exec", "--pid-file", pid_file, "--process", process]
        if console:
            words += ["--tty", "--console-socket", console]
            if not os.path.exists(f"{self.state_directory(id)}/status"):  # crun's
                words.append(DETACHED)
        return self.command(log, *words, id)

    def command(self, log: str, *words: str) -> list[str]:
        """A command line; what goes wrong is written to `log` as lines of JSON."""
        start = [self.name, "--root", self.root, "--log", log, "--log-format", "json"]
        if self.systemd_cgroup:
            start.append("--systemd-cgroup")
        return [*start, *words]

    def state_directory(self, id: str) -> str:
        """Where the runtime keeps this container's state."""
        return f"{self.root}/{id}"

    def has_state(self, id: str) -> bool:
        """Whether the runtime knows the container."""
        return os.path.exists(self.state_directory(id))

    def made(self, id: str) -> procfs.Identity | None:
        """The first process, as the runtime's own state tells it apart; None without a state."""
        directory = self.state_directory(id)
        for name, pid, start in (
            ("status", "pid", "process-start-time"),
            ("state.json", "init_process_pid", "init_process_start"),
        ):
            try:
                state = parse(Path(directory, name).read_bytes(), name)
                return procfs.Identity(int(state[pid]), int(state[start]))
            except (FileNotFoundError, KeyError):
                continue
        return None

    def exec_fifo(self, id: str) -> str | None:
        """The FIFO that takes the byte which starts the container; None when this is not crun.

        crun keeps a file `status`; runc keeps `state.json`, and its FIFO is read, not written.
        """
        directory = self.state_directory(id)
        known = os.path.exists(f"{directory}/status") and os.path.exists(f"{directory}/exec.fifo")
        return f"{directory}/exec.fifo" if known else None

    def waits_for_start(self, id: str) -> bool:
        """Whether a created container was not started yet; both runtimes remove the FIFO then."""
        return os.path.exists(f"{self.state_directory(id)}/exec.fifo")

    def can_be_removed_by_us(self, id: str, config: Mapping[str, Any]) -> bool:
        """Whether removing cgroups and state is all that its delete would do."""
        known = os.path.exists(f"{self.state_directory(id)}/status")
        return known and not self.systemd_cgroup and not hooks(config, "poststop")


def find_program(binary_name: str) -> str:
    """The path of the wanted runtime, or of the preferred one that is installed."""
    for name in (binary_name,) if binary_name else PREFERRED:
        # The shim's PATH may be poor; sbin is where Debian keeps runc.
        path = shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
        if path is not None:
            return path
    wanted = binary_name or " or ".join(PREFERRED)
    raise NotFound(f"OCI runtime {wanted}: not found")


def choose(options: Mapping[str, Any], namespace: str, bundle: str) -> Runtime:
    """The runtime that a client's options ask for, for one container."""
    program = find_program(options.get("binary_name", ""))
    root = options.get("root", "")
    return Runtime(
        program=program,
        name=os.path.basename(program),
        # Within the bundle an id is unique, and no state outlives the bundle.
        root=f"{root}/{namespace}" if root else f"{bundle}/oci",
        systemd_cgroup=bool(options.get("systemd_cgroup")),
        no_pivot_root=bool(options.get("no_pivot_root")),
        no_new_keyring=bool(options.get("no_new_keyring")),
        shim_cgroup=str(options.get("shim_cgroup", "")),
    )


def release(fifo: str) -> None:
    """Writes the byte for which crun's container waits; without effect when it does not wait."""
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENXIO:  # nobody reads: started before a shim died
            raise
    else:
        try:
            os.write(descriptor, b"\0")
        finally:
            os.close(descriptor)
    os.unlink(fifo)


def failure(log: str, status: int) -> str:
    """Why the runtime failed: the last error in its log, else how it ended."""
    message = ""
    try:
        lines = Path(log).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        fields = _object(entry)
        if fields.get("level") in ("error", "fatal", None):
            message = str(fields.get("msg", "")) or message
    if message:
        return message
    code = os.waitstatus_to_exitcode(status)
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def parse(config: bytes, about: str) -> dict[str, Any]:
    """A JSON object from outside; InvalidArgument when it is none."""
    try:
        parsed = json.loads(config)
    except ValueError as error:
        raise InvalidArgument(f"{about}: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidArgument(f"{about}: not a JSON object")
    return cast("dict[str, Any]", parsed)


def hooks(config: Mapping[str, Any], kind: str) -> Sequence[Any]:
    """The hooks of one kind in a config."""
    return cast("Sequence[Any]", _object(config.get("hooks")).get(kind) or ())


def has_pid_namespace(config: Mapping[str, Any]) -> bool:
    """Whether the kernel kills the container's processes with its first one."""
    namespaces = cast("Sequence[Any]", _object(config.get("linux")).get("namespaces") or ())
    found = [_object(one) for one in namespaces]
    return any(one.get("type") == "pid" and not one.get("path") for one in found)


def clamp_oom_score(process: dict[str, Any]) -> bool:
    """Raises a process spec's oomScoreAdj to ours where it may not be lower; tells if it did."""
    wanted = process.get("oomScoreAdj")
    if not isinstance(wanted, int) or procfs.has_capability(CAP_SYS_RESOURCE):
        return False
    ours = int(Path("/proc/self/oom_score_adj").read_text())
    if wanted >= ours:
        return False
    process["oomScoreAdj"] = ours
    return True


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
