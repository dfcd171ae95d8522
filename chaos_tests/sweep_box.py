"""The deeds on the one container that the sweep's operations have, and on its exec."""

from contextlib import suppress

from examples import busybox_image

from holdfast.actors.errors import FailedPrecondition, NotFound
from holdfast.api.cli.session import Session

from . import sweep_asks as asks

IMAGE = busybox_image.DEFAULT_NAME
BOX = "box"
EXEC = "extra"


async def discard(session: Session) -> None:
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


async def wait(session: Session) -> None:
    await session.wait(BOX)


async def delete_task(session: Session) -> None:
    await session.delete_task(BOX)


async def start(session: Session) -> None:
    with suppress(FailedPrecondition):  # it runs, or has ended by now
        await session.start(BOX)


async def start_exec(session: Session) -> None:
    with suppress(FailedPrecondition):
        await session.start(BOX, EXEC)


async def wait_exec(session: Session) -> None:
    await session.wait(BOX, EXEC)


async def kill(session: Session) -> None:
    with suppress(FailedPrecondition):  # it has ended by now
        await asks.kill(session, BOX)


async def delete_exec(session: Session) -> None:
    await asks.delete_exec(session, BOX, EXEC)


async def create_brief(session: Session) -> None:
    await asks.create_container(session, BOX, IMAGE, "sh", "-c", "exit 7")


async def create_long(session: Session) -> None:
    await asks.create_container(session, BOX, IMAGE, "sleep", "100000")


async def create_task(session: Session) -> None:
    await asks.create_task(session, BOX)


async def remove_snapshot(session: Session) -> None:
    await asks.remove_snapshot(session, BOX)


async def delete_box(session: Session) -> None:
    await asks.delete_container(session, BOX)


async def add_exec(session: Session) -> None:
    await asks.add_exec(session, BOX, EXEC, "/bin/sh", "-c", "exit 5")
