"""What a host runs with: its OCI runtime, its cgroups."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from ..runtime.cgroup import layout
from ..runtime.oci import find_program


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a host runs with."""

    runtime: str
    cgroups: str


def look_at_host(oci_runtime: str) -> Facts:
    """The OCI runtime's version line, and the cgroup layout."""
    binary = find_program(oci_runtime)
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10)
    first = done.stdout.splitlines()[0] if done.stdout else Path(binary).name
    return Facts(runtime=f"{first} ({binary})", cgroups=layout().value)
