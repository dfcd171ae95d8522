"""Which Holdfast this is, and who this installation is for as long as its root lives."""

import os
import uuid
from pathlib import Path
from typing import Final

VERSION: Final = "0.1.0"  # pyproject.toml's; to look it up would take a while at each start
REVISION: Final = f"holdfast-{VERSION}"  # clients print it beside the version
UUID_FILE: Final = "uuid"


def lasting_uuid(root: Path) -> str:
    """The uuid in the root directory, made on first use. Damaged text is replaced."""
    path = root / UUID_FILE
    try:
        return str(uuid.UUID(path.read_text().strip()))
    except (OSError, ValueError):
        made = str(uuid.uuid4())
        partial = path.with_suffix(".partial")
        partial.write_text(made + "\n")
        os.replace(partial, path)
        return made
