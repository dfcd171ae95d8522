"""The catalogue: every operation that is durable. `sweep_annex.py` has those beside the records
and tasks of old."""

from collections.abc import Sequence
from pathlib import Path

from . import sweep_annex
from . import sweep_asks as asks
from . import sweep_box as box
from .sweep_operation import Operation

OTHER = "docker.io/library/other:latest"
BLOB = b"sweep" * 4096


def catalogue(other: Path) -> Sequence[Operation]:
    """All operations. `other` is an archive of an image of that name, with content of its own."""
    runs = (box.create_long, box.create_task, box.start)
    everyone = ("daemon", "shim", "fork-server")
    return [
        Operation(
            name="namespace create",
            work=[lambda s: asks.create_namespace(s, "other")],
            after=[lambda s: asks.delete_namespace(s, "other")],
        ),
        Operation(
            name="namespace delete",
            before=[lambda s: asks.create_namespace(s, "other")],
            work=[lambda s: asks.delete_namespace(s, "other")],
        ),
        Operation(
            name="image import",
            work=[lambda s: asks.import_image(s, other)],
            after=[lambda s: asks.remove_image(s, OTHER)],
        ),
        Operation(
            name="image remove",
            before=[lambda s: asks.import_image(s, other)],
            work=[lambda s: asks.remove_image(s, OTHER)],
        ),
        Operation(
            name="content write",
            # Between the two is an ingest, which its writer may take up again.
            work=[
                lambda s: asks.write(s, "blob", BLOB, commit=False),
                lambda s: asks.write(s, "blob", BLOB, commit=True),
            ],
            after=[
                lambda s: asks.delete_content(s, BLOB),
                lambda s: asks.abort(s, "blob"),
            ],
        ),
        Operation(
            name="content abort",
            before=[lambda s: asks.write(s, "blob", BLOB, commit=False)],
            work=[lambda s: asks.abort(s, "blob")],
        ),
        Operation(
            name="content delete",
            before=[lambda s: asks.write(s, "blob", BLOB, commit=True)],
            work=[lambda s: asks.delete_content(s, BLOB)],
        ),
        Operation(
            name="lease create",
            work=[lambda s: asks.create_lease(s, "mine")],
            after=[lambda s: asks.delete_lease(s, "mine")],
        ),
        Operation(
            name="lease delete",
            before=[lambda s: asks.create_lease(s, "mine")],
            work=[lambda s: asks.delete_lease(s, "mine")],
        ),
        Operation(
            name="snapshot prepare",
            work=[lambda s: asks.prepare(s, "work", "")],
            after=[lambda s: asks.remove_snapshot(s, "work")],
        ),
        Operation(
            name="snapshot commit",
            before=[lambda s: asks.prepare(s, "work", "")],
            work=[lambda s: asks.commit(s, "fixed", "work")],
            after=[
                lambda s: asks.remove_snapshot(s, "work"),
                lambda s: asks.remove_snapshot(s, "fixed"),
            ],
        ),
        Operation(
            name="snapshot remove",
            before=[lambda s: asks.prepare(s, "work", "")],
            work=[lambda s: asks.remove_snapshot(s, "work")],
        ),
        Operation(name="container create", work=[box.create_long], after=[box.discard]),
        Operation(
            name="container update",
            before=[box.create_long],
            work=[lambda s: asks.label_container(s, box.BOX, {"turn": "second"})],
            after=[box.discard],
        ),
        Operation(
            name="container delete",
            before=[box.create_long],
            work=[box.remove_snapshot, box.delete_box],
        ),
        Operation(
            name="task create",
            before=[box.create_long],
            work=[box.create_task],
            after=[box.discard],
            programs=everyone,
        ),
        Operation(
            name="task start",
            before=[box.create_long, box.create_task],
            work=[box.start],
            after=[box.discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task exec",
            before=runs,
            work=[box.add_exec, box.start_exec, box.wait_exec, box.delete_exec],
            after=[box.discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task kill",
            before=runs,
            work=[box.kill, box.wait],
            after=[box.discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task delete",
            before=[*runs, box.kill, box.wait],
            work=[box.delete_task],
            after=[box.discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task delete, never started",
            before=[box.create_long, box.create_task],
            work=[box.delete_task],
            after=[box.discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="run --rm",
            work=[
                box.create_brief,
                box.create_task,
                box.start,
                box.wait,
                box.delete_task,
                box.remove_snapshot,
                box.delete_box,
            ],
            after=[box.discard],
            programs=everyone,
        ),
        *sweep_annex.operations(other, OTHER),
    ]
