"""The catalogue: every operation that is durable, from the world before it to the world after.

    before(asks...)    brings about what the operation begins with
    work(asks...)      the operation, one call of a client or a client's usual few
    after(asks...)     takes all away again; what is gone already is no error

An operation's calls may be repeated after a fall: what was done is then refused as there already,
or as gone.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from examples import busybox_image

from holdfast.actors.errors import FailedPrecondition, NotFound
from holdfast.api.cli.session import Session

from . import sweep_asks as asks

IMAGE = busybox_image.DEFAULT_NAME
OTHER = "docker.io/library/other:latest"
BLOB = b"sweep" * 4096
BOX = "box"
EXEC = "extra"

Deed = Callable[[Session], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One entry. Where several calls make it up, a fall leaves any number of them done."""

    name: str
    work: Sequence[Deed]
    before: Sequence[Deed] = ()
    after: Sequence[Deed] = ()
    programs: Sequence[str] = ("daemon",)
    """Whose points are swept."""


async def _discard(session: Session) -> None:
    """The container with its task, in whatever state."""
    with suppress(NotFound, FailedPrecondition):
        await asks.kill(session, BOX)
        await session.wait(BOX)
    with suppress(NotFound):
        await session.delete_task(BOX)
    with suppress(NotFound):
        container = await session.container(BOX)
        with suppress(NotFound):
            await asks.remove_snapshot(session, container.snapshot_key)
        await asks.delete_record(session, BOX)


async def _wait(session: Session) -> None:
    await session.wait(BOX)


async def _delete_task(session: Session) -> None:
    await session.delete_task(BOX)


async def _start(session: Session) -> None:
    with suppress(FailedPrecondition):  # it runs, or has ended by now
        await session.start(BOX)


async def _start_exec(session: Session) -> None:
    with suppress(FailedPrecondition):
        await session.start(BOX, EXEC)


async def _wait_exec(session: Session) -> None:
    await session.wait(BOX, EXEC)


async def _kill(session: Session) -> None:
    with suppress(FailedPrecondition):  # it has ended by now
        await asks.kill(session, BOX)


async def _delete_exec(session: Session) -> None:
    await asks.delete_exec(session, BOX, EXEC)


async def _create_brief(session: Session) -> None:
    await asks.create_container(session, BOX, IMAGE, "sh", "-c", "exit 7")


async def _create_long(session: Session) -> None:
    await asks.create_container(session, BOX, IMAGE, "sleep", "100000")


async def _create_task(session: Session) -> None:
    await asks.create_task(session, BOX)


async def _remove_snapshot(session: Session) -> None:
    await asks.remove_snapshot(session, BOX)


async def _delete_box(session: Session) -> None:
    await asks.delete_container(session, BOX)


async def _add_exec(session: Session) -> None:
    await asks.add_exec(session, BOX, EXEC, "/bin/sh", "-c", "exit 5")


def catalogue(other: Path) -> Sequence[Operation]:
    """All operations. `other` is an archive of an image of that name, with content of its own."""
    runs = (_create_long, _create_task, _start)
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
        Operation(name="container create", work=[_create_long], after=[_discard]),
        Operation(
            name="container update",
            before=[_create_long],
            work=[lambda s: asks.label_container(s, BOX, {"turn": "second"})],
            after=[_discard],
        ),
        Operation(
            name="container delete",
            before=[_create_long],
            work=[_remove_snapshot, _delete_box],
        ),
        Operation(
            name="task create",
            before=[_create_long],
            work=[_create_task],
            after=[_discard],
            programs=everyone,
        ),
        Operation(
            name="task start",
            before=[_create_long, _create_task],
            work=[_start],
            after=[_discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task exec",
            before=runs,
            work=[_add_exec, _start_exec, _wait_exec, _delete_exec],
            after=[_discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task kill",
            before=runs,
            work=[_kill, _wait],
            after=[_discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task delete",
            before=[*runs, _kill, _wait],
            work=[_delete_task],
            after=[_discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="task delete, never started",
            before=[_create_long, _create_task],
            work=[_delete_task],
            after=[_discard],
            programs=("daemon", "shim"),
        ),
        Operation(
            name="run --rm",
            work=[
                _create_brief,
                _create_task,
                _start,
                _wait,
                _delete_task,
                _remove_snapshot,
                _delete_box,
            ],
            after=[_discard],
            programs=everyone,
        ),
    ]
