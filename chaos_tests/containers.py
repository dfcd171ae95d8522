"""What the workload's containers are: their program, their OCI spec, and what they must write.

A container writes numbered lines to stdout and stderr, waits at a gate that the harness opens when
it likes, also while no process of Holdfast lives, writes the rest, and exits with a chosen code.
"""

import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "sleep", "usleep", "echo", "true", "mkdir", "stty")
CGROUP_PARENT = "holdfast-chaos"
GATES = "/gates"
CODES = range(1, 120)
LINES_MAX = 1200
CAP = "max-size=4096&max-files=9999"
LINES_OF_A_CHATTERER = 20_000


class State(StrEnum):
    """What a task is doing when the nemesis strikes."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    EXEC = "exec running"
    EXITING = "exiting"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One container of a run, as the seed has chosen it."""

    name: str
    state: State
    terminal: bool = False
    stdin: bool = False
    code: int = 0
    exec_code: int = 0
    lines_before: int = 100
    lines_after: int = 100
    to_file: bool = False
    """Its output goes to `file://` logs instead of FIFOs."""
    capped: bool = False
    """These logs have a cap: a logger of ours writes them."""
    log: str = ""
    """The log URI of both its streams, where it is another."""
    in_sandbox: bool = False
    """It joins its round's sandbox."""
    reader_away: bool = False
    """Its reader lets go of the FIFOs before the harm, and comes back after it."""
    exits_inside: bool = False
    """It is let to its end while the harm lasts."""
    runtime: str = ""
    """The path of its OCI runtime; the host's when empty."""
    layer: str = ""
    """A directory that is one more layer of its root."""
    bind: str = ""
    """A directory that it finds at /mnt."""

    @property
    def has_exec(self) -> bool:
        """Whether a second process runs in it."""
        return self.state is State.EXEC


def draw(name: str, state: State, *, terminal: bool, stdin: bool, dice: random.Random) -> Plan:
    """A container for a cell of the matrix; what the cell leaves open, the dice decide."""
    to_file = not terminal and dice.random() < 0.4
    return Plan(
        name=name,
        state=state,
        terminal=terminal,
        stdin=stdin,
        code=dice.choice(CODES),
        exec_code=dice.choice(CODES),
        # Some still write when they are struck; the others stand at their gate.
        lines_before=LINES_OF_A_CHATTERER if dice.random() < 0.2 else dice.randrange(1, LINES_MAX),
        lines_after=dice.randrange(1, LINES_MAX),
        to_file=to_file,
        capped=to_file and dice.random() < 0.6,
        in_sandbox=dice.random() < 0.2,
        reader_away=not terminal and not to_file and dice.random() < 0.25,
        exits_inside=state in (State.RUNNING, State.EXEC, State.EXITING) and dice.random() < 0.9,
    )


SAY = """say() {
  i=$1
  while [ $i -lt $2 ]; do echo "o$i"; echo "e$i" >&2; i=$((i+1)); done
}
"""
INPUT_LINES = 40
END_OF_INPUT = "end"


def script(plan: Plan, *, of_exec: bool = False) -> str:
    """The shell program of the container's first process, or of its exec."""
    gate = f"{GATES}/{'exec' if of_exec else 'init'}"
    all_lines = plan.lines_before + plan.lines_after
    # What a terminal echoes would break into the lines that are written at that moment.
    quiet = "stty -echo\n" if plan.terminal and not of_exec else ""
    text = quiet + SAY + f"say 0 {plan.lines_before}\necho stage\nread g <{gate}\n"
    text += f"say {plan.lines_before} {all_lines}\n"
    if plan.stdin and not of_exec:
        # Ends at the end of its input, or at a line that says so: a terminal has no other end.
        text += f'while read l; do [ "$l" = {END_OF_INPUT} ] && break; echo "i$l"; done\n'
    return text + f"exit {plan.exec_code if of_exec else plan.code}\n"


def wanted_stdout(plan: Plan, *, of_exec: bool = False) -> bytes:
    """What the process writes to its stdout."""
    lines = [f"o{i}" for i in range(plan.lines_before)] + ["stage"]
    lines += [f"o{i}" for i in range(plan.lines_before, plan.lines_before + plan.lines_after)]
    if plan.stdin and not of_exec:
        lines += [f"i{i}" for i in range(INPUT_LINES)]
    return "".join(f"{line}\n" for line in lines).encode()


def wanted_stderr(plan: Plan) -> bytes:
    """What the process writes to its stderr."""
    return b"".join(b"e%d\n" % i for i in range(plan.lines_before + plan.lines_after))


def process(args: Sequence[str], *, terminal: bool = False) -> dict[str, Any]:
    """The OCI process that runs these words."""
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "cwd": "/",
        "env": ["PATH=/bin"],
        "noNewPrivileges": True,
    }


def spec(plan: Plan, gates: Path, group: str) -> bytes:
    """The OCI spec: namespaces of its own, the gates bound in, a cgroup below `group`."""

    def mount(target: str, kind: str, source: str, *options: str) -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source, "options": list(options)}

    return json.dumps(
        {
            "ociVersion": "1.0.2",
            "process": process(["sh", "-c", script(plan)], terminal=plan.terminal),
            "root": {"path": "rootfs"},
            "mounts": [
                mount("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
                mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755", "size=65536k"),
                mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance"),
                mount(GATES, "bind", str(gates), "rbind", "rw"),
                *([mount("/mnt", "bind", plan.bind, "rbind", "ro")] if plan.bind else []),
            ],
            "linux": {
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "cgroupsPath": f"/{CGROUP_PARENT}/{group}/{plan.name}",
                "namespaces": [{"type": t} for t in ("pid", "ipc", "uts", "mount")],
            },
        }
    ).encode()


def exec_spec(plan: Plan) -> bytes:
    """The OCI process of the exec."""
    return json.dumps(process(["sh", "-c", script(plan, of_exec=True)])).encode()


def make_root(folder: Path) -> None:
    """Put a busybox into an empty directory, for it to be a root filesystem."""
    for name in ("bin", "proc", "dev", "sys", "tmp", "mnt", GATES.strip("/")):
        (folder / name).mkdir(exist_ok=True)
    shutil.copy(BUSYBOX, folder / "bin/busybox")
    for name in APPLETS:
        os.symlink("busybox", folder / "bin" / name)


def brief(name: str) -> Plan:
    """A container with a short life."""
    return Plan(name=name, state=State.RUNNING, code=3, lines_before=3, lines_after=3)
