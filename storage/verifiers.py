"""Image verifiers: programs of the host's owner that judge an image before it is pulled.

Each program in the folder is run as containerd runs those of its `bin_dir`:

    PROGRAM -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json

with the descriptor as JSON on stdin. Status 0 lets the image pass. Any other refuses it, and what
the program says on stdout is the reason. One that cannot be run, takes too long or says without
end refuses too: silence is no consent. What it says on stderr goes to the log.

They are asked after the name is resolved and before anything is fetched. A folder that is not
there, or has nothing in it, refuses nothing.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio

from ..actors.errors import FailedPrecondition, PermissionDenied, Refusal
from .descriptor import Descriptor
from .document import canonical_json
from .programs import run_program

log: structlog.stdlib.BoundLogger = structlog.get_logger()

DESCRIPTOR_TYPE = "application/vnd.oci.descriptor.v1+json"
REASON_BYTES_MAX = 32 << 10


class Verifiers:
    """The programs of a folder; none where no folder is named. `programs_max` below zero is no
    bound: else the first by name are asked, and the others are not."""

    def __init__(self, folder: Path | None, *, programs_max: int, within_s: float) -> None:
        self._folder = folder
        self._programs_max = programs_max
        self._within_s = within_s

    async def verify(self, name: str, target: Descriptor) -> None:
        """Return when all let the image pass; `PermissionDenied` with the reason when one does
        not."""
        if self._folder is None:
            return
        names = await trio.to_thread.run_sync(_programs, self._folder)
        chosen = names if self._programs_max < 0 else names[: self._programs_max]
        if len(chosen) < len(names):
            log.warning("verifiers.skipped", folder=str(self._folder), names=names[len(chosen) :])
        for program in chosen:
            await self._ask(self._folder / program, name, target)

    async def _ask(self, program: Path, name: str, target: Descriptor) -> None:
        words = [str(program), "-name", name, "-digest", target.digest]
        words += ["-stdin-media-type", DESCRIPTOR_TYPE]
        try:
            ran = await run_program(
                words, stdin=canonical_json(target.to_json()) + b"\n", within_s=self._within_s
            )
        except Refusal as error:
            raise FailedPrecondition(
                f"image {name} is not verified: verifier {program.name}: {error}"
            ) from error
        if ran.stderr:
            log.debug("verifier.said", verifier=program.name, text=ran.complaint)
        if ran.status != 0:
            reason = ran.stdout[:REASON_BYTES_MAX].decode(errors="replace").strip()
            raise PermissionDenied(
                f"image {name} is refused by verifier {program.name} ({ran.end}): {reason}"
            )
        log.info("image.verified", image=name, digest=target.digest, verifier=program.name)


def _programs(folder: Path) -> Sequence[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise FailedPrecondition(f"image verifiers: {folder}: {error.strerror}") from error
