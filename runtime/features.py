"""What an OCI runtime says that it can do: `runc features`, an object of the runtime spec."""

import json
import os
import subprocess

from ..actors.errors import Unavailable
from .oci import find_program

WITHIN_S = 10.0


def read_features(binary_name: str = "") -> bytes:
    """The features in JSON, of the named runtime or of the one used by default; none where it
    does not know the command, as crun before 1.9. NotFound when it is not installed. Blocks."""
    program = find_program(binary_name)
    try:
        done = subprocess.run(
            [program, "features"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        name = os.path.basename(program)
        raise Unavailable(f"{name} features: no answer in {WITHIN_S:g} s") from None
    if done.returncode != 0:
        return b""
    try:
        told = json.loads(done.stdout)
    except ValueError:
        return b""
    return done.stdout if isinstance(told, dict) else b""
