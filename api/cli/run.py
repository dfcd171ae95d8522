"""run, exec, attach: a process in a container with our stdio, and its exit status as ours."""

import json
import os
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from ...actors.errors import FailedPrecondition, InvalidArgument, NotFound, Refusal
from .. import logfiles
from ..anys import PROCESS_URL
from ..proto.services import admin_pb2, containers_pb2, tasks_pb2
from . import logs, pull, stdio
from .output import bytes_of, say
from .session import Session, Where

FORGET_WITHIN_S = 0.2  # to remove an exec that is over; one that is not is left alone


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--rm", "remove", is_flag=True, help="Remove the container when it ends.")
@click.option("--detach", "-d", is_flag=True, help="Run in the background and print the name.")
@click.option("--interactive", "-i", is_flag=True, help="Pass our standard input on.")
@click.option("--tty", "-t", "terminal", is_flag=True, help="Give the container a terminal.")
@click.option("--name", default="", help="The container's name; one is chosen otherwise.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Over the image's own.")
@click.option("--workdir", "-w", default="", metavar="DIR", help="Where the command begins.")
@click.option("--user", "-u", default="", metavar="USER[:GROUP]", help="Names or numbers.")
@click.option("--hostname", default="", metavar="NAME", help="The container's name otherwise.")
@click.option(
    "--volume",
    "-v",
    multiple=True,
    metavar="HOST:CONTAINER[:ro]",
    help="Show a path of the host at a path of the container.",
)
@click.option("--tmpfs", multiple=True, metavar="PATH", help="Mount an empty tmpfs there.")
@click.option("--read-only", is_flag=True, help="Mount the root filesystem read-only.")
@click.option(
    "--network",
    type=click.Choice(["none", "host"]),
    default="none",
    show_default=True,
    help="A network namespace with a loopback alone, or the host's.",
)
@click.option("--memory", "-m", default="", metavar="BYTES", help="A limit; k, m and g are known.")
@click.option("--cpus", type=float, default=0.0, help="A limit; 1.5 is one and a half.")
@click.option("--pids-limit", type=int, default=0, help="Processes and threads at most.")
@click.option("--label", "-l", multiple=True, metavar="NAME=VALUE", help="Kept in the record.")
@click.option("--snapshotter", default="", metavar="NAME", help="The daemon's own otherwise.")
@click.option(
    "--pull",
    type=click.Choice(["missing", "always", "never"]),
    default="missing",
    show_default=True,
    help="When to bring the image in from its registry first.",
)
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, /, image: str, command: tuple[str, ...], **given: Any) -> None:
    """Run a command in a new container; give its exit status.

    Without a daemon it brings its own host, which needs root.
    """
    where: Where = context.obj
    request = admin_pb2.CreateContainerRequest(
        name=given["name"],
        image=image,
        args=command,
        env=given["env"],
        cwd=given["workdir"],
        user=given["user"],
        terminal=given["terminal"],
        hostname=given["hostname"],
        read_only_root=given["read_only"],
        binds=[_bind(text) for text in given["volume"]],
        tmpfs=given["tmpfs"],
        host_network=given["network"] == "host",
        memory_limit=bytes_of("--memory", given["memory"]),
        cpus=given["cpus"],
        pids_limit=given["pids_limit"],
        labels=dict(_pair(text) for text in given["label"]),
        snapshotter=given["snapshotter"],
    )
    if given["detach"]:
        trio.run(_detached, where, request, given["pull"])
        return
    interactive, remove = given["interactive"], given["remove"]
    context.exit(trio.run(_attached, where, request, given["pull"], interactive, remove))


async def _attached(
    where: Where,
    request: admin_pb2.CreateContainerRequest,
    policy: pull.Policy,
    interactive: bool,
    remove: bool,
) -> int:
    async with where.session_or_host() as session:
        await pull.ensure(session, request.image, policy, request.snapshotter)
        container = await _create(session, request)
        try:
            with stdio.pipes(interactive=interactive, terminal=request.terminal) as names:
                await _create_task(session, container, names, request.terminal)
                status = await _started(session, container.id, "", names, request.terminal)
        except BaseException:
            with trio.move_on_after(10, shield=True):
                await _discard(session, container)
            raise
        if remove:
            await session.delete_task(container.id)
            await session.delete_container(container)
        return status


async def _detached(
    where: Where, request: admin_pb2.CreateContainerRequest, policy: pull.Policy
) -> None:
    """The output goes straight into files of the daemon's root, which `logs` reads."""
    async with where.session() as session:
        await pull.ensure(session, request.image, policy, request.snapshotter)
        root = Path((await session.info()).root)
        if not request.name:
            request.name = uuid.uuid4().hex[:12]
        folder = logfiles.folder(root, session.namespace, request.name)
        request.labels[logs.LABEL] = str(folder)
        container = await _create(session, request)
        try:
            logfiles.prepare(folder)
            names = stdio.Pipes(
                "", f"file://{folder}/stdout", "" if request.terminal else f"file://{folder}/stderr"
            )
            await _create_task(session, container, names, request.terminal)
            await session.start(container.id)
        except BaseException:
            with trio.move_on_after(10, shield=True):
                await _discard(session, container)
            raise
        say(container.id)


async def _create(
    session: Session, request: admin_pb2.CreateContainerRequest
) -> containers_pb2.Container:
    made = await session.call("admin/CreateContainer", request, admin_pb2.CreateContainerResponse)
    return await session.container(made.name)


async def _create_task(
    session: Session, container: containers_pb2.Container, names: stdio.Pipes, terminal: bool
) -> None:
    request = tasks_pb2.CreateTaskRequest(
        container_id=container.id,
        rootfs=(await session.mounts(container)).mounts,
        stdin=names.stdin,
        stdout=names.stdout,
        stderr=names.stderr,
        terminal=terminal,
    )
    await session.call("Tasks/Create", request, tasks_pb2.CreateTaskResponse)


async def _discard(session: Session, container: containers_pb2.Container) -> None:
    """Take back a container whose task did not come to run, or whose client is leaving."""
    try:
        kill = tasks_pb2.KillRequest(container_id=container.id, signal=9, all=True)
        await session.call("Tasks/Kill", kill, Empty)
        await session.wait(container.id)
    except Refusal:
        pass  # there is no task, or it has ended: what is left is removed below
    try:
        await session.delete_task(container.id)
    except Refusal:
        pass
    await session.delete_container(container)
    logs.remove(container)


async def _started(
    session: Session, name: str, exec_id: str, names: stdio.Pipes, terminal: bool
) -> int:
    """Start a created process, pass stdio until it ends, give its exit status."""

    async with _passing(session, name, exec_id, names, terminal) as running:
        await session.start(name, exec_id)
        running.set()
        size = stdio.window() if terminal else None
        if size is not None:
            await _resize(session, name, exec_id, *size)
        return await session.wait(name, exec_id)


@asynccontextmanager
async def _passing(
    session: Session, name: str, exec_id: str, names: stdio.Pipes, terminal: bool
) -> AsyncGenerator[trio.Event]:
    """Within the block our stdio, window and signals are the process's; stdin once it runs."""
    with stdio.raw_terminal() if terminal else nullcontext():
        async with trio.open_nursery() as nursery:
            if terminal:
                nursery.start_soon(stdio.follow_window, partial(_resize, session, name, exec_id))
            else:
                nursery.start_soon(stdio.forward_signals, partial(_kill, session, name, exec_id))
            closing = partial(_close_stdin, session, name, exec_id)
            async with stdio.copied(names, closing) as running:
                yield running
            nursery.cancel_scope.cancel()


async def _resize(session: Session, name: str, exec_id: str, columns: int, rows: int) -> None:
    request = tasks_pb2.ResizePtyRequest(
        container_id=name, exec_id=exec_id, width=columns, height=rows
    )
    await _tolerant(session, "Tasks/ResizePty", request)


async def _kill(session: Session, name: str, exec_id: str, number: int) -> None:
    request = tasks_pb2.KillRequest(container_id=name, exec_id=exec_id, signal=number)
    await _tolerant(session, "Tasks/Kill", request)


async def _close_stdin(session: Session, name: str, exec_id: str) -> None:
    request = tasks_pb2.CloseIORequest(container_id=name, exec_id=exec_id, stdin=True)
    await _tolerant(session, "Tasks/CloseIO", request)


async def _tolerant(session: Session, path: str, request: Any) -> None:
    """A courtesy to a process that may just have ended."""
    try:
        await session.call(path, request, Empty)
    except (NotFound, FailedPrecondition):
        pass


@click.command(
    name="exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--detach", "-d", is_flag=True, help="Run in the background.")
@click.option("--interactive", "-i", is_flag=True, help="Pass our standard input on.")
@click.option("--tty", "-t", "terminal", is_flag=True, help="Give the process a terminal.")
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Over the container's own.")
@click.option("--workdir", "-w", default="", metavar="DIR", help="Where the command begins.")
@click.option("--user", "-u", default="", metavar="UID[:GID]", help="Numbers.")
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(context: click.Context, /, name: str, command: tuple[str, ...], **given: Any) -> None:
    """Run a command in a running container; give its exit status."""
    context.exit(trio.run(_exec, context.obj, name, command, given))


async def _exec(where: Where, name: str, command: tuple[str, ...], given: dict[str, Any]) -> int:
    async with where.session() as session:
        container = await session.container(name)
        process = _process(container, command, given)
        exec_id = "exec-" + uuid.uuid4().hex[:12]
        terminal, detach = bool(given["terminal"]), bool(given["detach"])
        with stdio.pipes(
            interactive=bool(given["interactive"]) and not detach, terminal=terminal
        ) as names:
            if detach:
                names = stdio.Pipes("", "", "")
            request = tasks_pb2.ExecProcessRequest(
                container_id=name,
                exec_id=exec_id,
                stdin=names.stdin,
                stdout=names.stdout,
                stderr=names.stderr,
                terminal=terminal,
                spec=AnyMessage(type_url=PROCESS_URL, value=json.dumps(process).encode()),
            )
            await session.call("Tasks/Exec", request, Empty)
            gone = tasks_pb2.DeleteProcessRequest(container_id=name, exec_id=exec_id)
            if detach:
                await session.start(name, exec_id)
                return 0
            try:
                status = await _started(session, name, exec_id, names, terminal)
            finally:
                with trio.move_on_after(FORGET_WITHIN_S, shield=True):
                    await _forget(session, gone)
            return status


async def _forget(session: Session, gone: tasks_pb2.DeleteProcessRequest) -> None:
    try:
        await session.call("Tasks/DeleteProcess", gone, tasks_pb2.DeleteResponse)
    except Refusal:
        pass  # it still runs because we were interrupted, or its task is gone


def _process(
    container: containers_pb2.Container, command: tuple[str, ...], given: dict[str, Any]
) -> dict[str, Any]:
    """The container's own process with another command, as `docker exec` does it."""
    process: dict[str, Any] = dict(json.loads(container.spec.value)["process"])
    process["args"] = list(command)
    process["terminal"] = bool(given["terminal"])
    process["env"] = [*process.get("env", []), *given["env"]]
    if given["workdir"]:
        process["cwd"] = given["workdir"]
    if given["user"]:
        uid, _, gid = str(given["user"]).partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise InvalidArgument(f"user {given['user']!r} is not UID or UID:GID")
        process["user"] = {"uid": int(uid), "gid": int(gid or 0)}
    return process


@click.command()
@click.argument("name")
@click.pass_context
def attach(context: click.Context, name: str) -> None:
    """Take up a container's stdio; give its exit status."""
    context.exit(trio.run(_attach, context.obj, name))


async def _attach(where: Where, name: str) -> int:
    async with where.session() as session:
        process = (await session.task(name)).process
        if process.stdout.startswith("file://"):
            async with trio.open_nursery() as nursery:
                ended = trio.Event()
                nursery.start_soon(logs.follow, process.stdout, 1, ended)
                if process.stderr:
                    nursery.start_soon(logs.follow, process.stderr, 2, ended)
                status = await session.wait(name)
                ended.set()
            return status
        names = stdio.Pipes(process.stdin, process.stdout, process.stderr)
        missing = [
            path for path in (names.stdout, names.stderr) if path and not os.path.exists(path)
        ]
        if missing:
            raise FailedPrecondition(
                f"container {name}: {missing[0]} is gone with its first client"
            )
        async with _passing(session, name, "", names, process.terminal) as running:
            running.set()
            return await session.wait(name)


# ---------------------------------------------------------------- words into values


def _bind(text: str) -> admin_pb2.Bind:
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source.startswith("/") or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise click.UsageError(f"--volume {text!r} is not /HOST:/CONTAINER[:ro]")
    return admin_pb2.Bind(source=source, target=target, read_only=mode == "ro")


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


COMMANDS = (run, exec_, attach)
