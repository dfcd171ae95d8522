"""ps, wait, kill, pause, resume, rm, logs: containers and their tasks."""

import json
import signal
import time
from typing import Any

import click
import trio
from google.protobuf.empty_pb2 import Empty

from ...actors.errors import NotFound
from ..proto import task_types_pb2
from ..proto.services import containers_pb2, tasks_pb2
from . import logs
from .output import ago, format_option, moment, records, say
from .session import Session, Where

COMMAND_WIDTH = 30
RESTART_STATUS = "containerd.io/restart.status"
LIVE = (task_types_pb2.RUNNING, task_types_pb2.PAUSED, task_types_pb2.PAUSING)


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Show those that do not run, too.")
@click.option("--quiet", "-q", is_flag=True, help="Names only.")
@format_option
@click.pass_obj
def ps(where: Where, everything: bool, quiet: bool, output_format: str) -> None:
    """List containers."""
    rows = trio.run(_ps, where, everything)
    columns = ["name", "image", "command", "created", "status", "pid"]
    records(columns, rows, output_format=output_format, quiet=quiet)


async def _ps(where: Where, everything: bool) -> list[dict[str, Any]]:
    async with where.session() as session:
        listed = await session.call(
            "Containers/List",
            containers_pb2.ListContainersRequest(),
            containers_pb2.ListContainersResponse,
        )
        answer = await session.call(
            "Tasks/List", tasks_pb2.ListTasksRequest(), tasks_pb2.ListTasksResponse
        )
    tasks = {task.id: task for task in answer.tasks}
    now_s = time.time()
    return [
        _row(container, tasks.get(container.id), now_s)
        for container in listed.containers
        if everything or (container.id in tasks and tasks[container.id].status in LIVE)
    ]


def _row(
    container: containers_pb2.Container, task: task_types_pb2.Process | None, now_s: float
) -> dict[str, Any]:
    args = json.loads(container.spec.value or b"{}").get("process", {}).get("args", [])
    command = " ".join(args)
    return {
        "name": container.id,
        "image": container.image,
        "command": command
        if len(command) <= COMMAND_WIDTH
        else command[: COMMAND_WIDTH - 3] + "...",
        "created": ago(container.created_at.seconds, now_s),
        "status": _status(task),
        "pid": task.pid if task is not None and task.status in LIVE else None,
    }


def _status(task: task_types_pb2.Process | None) -> str:
    if task is None:
        return "no task"
    if task.status == task_types_pb2.STOPPED:
        return f"exited ({task.exit_status}) {moment(task.exited_at.seconds)}".rstrip()
    return task_types_pb2.Status.Name(task.status).lower()


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def wait(where: Where, names: tuple[str, ...]) -> None:
    """Wait until containers end and print their exit statuses."""

    async def work() -> None:
        async with where.session() as session:
            for name in names:
                say(str(await session.wait(name)))

    trio.run(work)


@click.command()
@click.option(
    "--signal", "-s", "name", default="KILL", show_default=True, help="By name or number."
)
@click.option("--all", "-a", "everyone", is_flag=True, help="Every process, not the first alone.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def kill(where: Where, name: str, everyone: bool, names: tuple[str, ...]) -> None:
    """Send a signal to running containers."""
    number = _signal(name)

    async def work() -> None:
        async with where.session() as session:
            for container in names:
                request = tasks_pb2.KillRequest(container_id=container, signal=number, all=everyone)
                await session.call("Tasks/Kill", request, Empty)
                say(container)

    trio.run(work)


def _signal(name: str) -> int:
    if name.isdigit():
        return int(name)
    known = getattr(signal, "SIG" + name.upper().removeprefix("SIG"), None)
    if not isinstance(known, signal.Signals):
        raise click.UsageError(f"unknown signal {name!r}")
    return int(known)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def pause(where: Where, names: tuple[str, ...]) -> None:
    """Freeze running containers."""
    trio.run(_each, where, names, "Tasks/Pause", tasks_pb2.PauseTaskRequest)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def resume(where: Where, names: tuple[str, ...]) -> None:
    """Let paused containers go on."""
    trio.run(_each, where, names, "Tasks/Resume", tasks_pb2.ResumeTaskRequest)


async def _each(where: Where, names: tuple[str, ...], path: str, kind: Any) -> None:
    async with where.session() as session:
        for name in names:
            await session.call(path, kind(container_id=name), Empty)
            say(name)


@click.command()
@click.option("--force", "-f", is_flag=True, help="Kill those that run.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def rm(where: Where, force: bool, names: tuple[str, ...]) -> None:
    """Remove ended containers, with snapshots and logs."""

    async def work() -> None:
        async with where.session() as session:
            for name in names:
                await _remove(session, name, force)
                say(name)

    trio.run(work)


async def _remove(session: Session, name: str, force: bool) -> None:
    container = await session.container(name)
    try:
        task = (await session.task(name)).process
    except NotFound:
        task = None
    lives = task is not None and task.status in LIVE
    if RESTART_STATUS in container.labels and (force or not lives):
        await _let_go(session, name)
    if task is not None:
        if force and lives:
            await _kill_and_wait(session, name)
        await session.delete_task(name)
    await session.delete_container(container)
    logs.remove(container)


async def _let_go(session: Session, name: str) -> None:
    """Have a container that is about to go brought back no more."""
    request = containers_pb2.UpdateContainerRequest(container=containers_pb2.Container(id=name))
    request.update_mask.paths.append(f"labels.{RESTART_STATUS}")
    await session.call("Containers/Update", request, containers_pb2.UpdateContainerResponse)


async def _kill_and_wait(session: Session, name: str) -> None:
    request = tasks_pb2.KillRequest(container_id=name, signal=signal.SIGKILL, all=True)
    try:
        await session.call("Tasks/Kill", request, Empty)
    except NotFound:
        pass  # it has just ended by itself
    await session.wait(name)


@click.command(name="logs")
@click.option("--follow", "-f", is_flag=True, help="Go on until the container ends.")
@click.argument("name")
@click.pass_obj
def logs_(where: Where, follow: bool, name: str) -> None:
    """Print what a container that was run with -d has written."""
    trio.run(_logs, where, follow, name)


async def _logs(where: Where, follow: bool, name: str) -> None:
    async with where.session() as session:
        container = await session.container(name)
        folder = container.labels.get(logs.LABEL)
        if not folder:
            raise NotFound(f"container {name}: it keeps no logs, as it was not run with -d")
        ended = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(logs.follow, f"file://{folder}/stdout", 1, ended)
            nursery.start_soon(logs.follow, f"file://{folder}/stderr", 2, ended)
            if follow:
                try:
                    await session.wait(name)
                except NotFound:
                    pass  # its task is gone: what is written is all
            ended.set()


COMMANDS = (ps, wait, kill, pause, resume, rm, logs_)
