"""info, version, tree, crashes, events, system, completion: the daemon itself."""

import json
from pathlib import Path
from typing import Any

import click
import trio
from click.shell_completion import get_completion_class
from google.protobuf import json_format
from google.protobuf.empty_pb2 import Empty

from ...actors.errors import FailedPrecondition
from ...runtime import vault
from ...storage.mountjobs import take_off
from ..config import MOUNTS_NAME, load
from ..identity import REVISION, VERSION
from ..proto.services import admin_pb2, version_pb2
from ..rootlock import root_lock
from ..treetext import tree_lines
from .output import format_option, moment, records, say
from .session import Where


@click.command()
@format_option
@click.pass_obj
def info(where: Where, output_format: str) -> None:
    """Print what the daemon is and the host it runs on."""

    async def work() -> admin_pb2.InfoResponse:
        async with where.session() as session:
            return await session.info()

    answer = trio.run(work)
    facts = json_format.MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if output_format == "json":
        say(json.dumps(facts, sort_keys=True))
        return
    width = max(len(key) for key in facts)
    for key, value in facts.items():
        say(f"{key.replace('_', ' '):<{width}}  {value}")


@click.command()
@click.pass_obj
def version(where: Where) -> None:
    """Print the versions of this command and of the daemon."""
    say(f"client   {VERSION} {REVISION}".rstrip())

    async def work() -> version_pb2.VersionResponse:
        async with where.session() as session:
            return await session.call("Version/Version", Empty(), version_pb2.VersionResponse)

    answer = trio.run(work)
    say(f"daemon   {answer.version} {answer.revision}".rstrip())


@click.command()
@format_option
@click.pass_obj
def tree(where: Where, output_format: str) -> None:
    """Print the live supervision tree."""

    async def work() -> admin_pb2.TreeNode:
        async with where.session() as session:
            path = "admin/Tree"
            return (await session.call(path, admin_pb2.TreeRequest(), admin_pb2.TreeResponse)).root

    root = trio.run(work)
    if output_format == "json":
        say(json_format.MessageToJson(root, preserving_proto_field_name=True, indent=None))
        return
    for line in tree_lines(root):
        say(line)


@click.command()
@format_option
@click.option("--traceback", is_flag=True, help="Print where each was raised.")
@click.pass_obj
def crashes(where: Where, output_format: str, traceback: bool) -> None:
    """Print the crash reports that are kept, oldest first."""

    async def work() -> list[admin_pb2.Crash]:
        async with where.session() as session:
            request = admin_pb2.CrashesRequest()
            return list(
                (await session.call("admin/Crashes", request, admin_pb2.CrashesResponse)).crashes
            )

    reports = trio.run(work)
    rows: list[dict[str, Any]] = [
        {
            "at": moment(report.at.seconds),
            "supervisor": report.supervisor,
            "child": report.child,
            "reason": report.reason,
            "next_step": report.next_step,
            "last_message": report.last_message,
            "state": report.state,
            "mailbox": report.mailbox,
            "traceback": report.traceback,
        }
        for report in reports
    ]
    columns = ["at", "supervisor", "child", "reason", "next_step", "last_message"]
    records(columns, rows, output_format=output_format)
    if traceback and output_format == "table":
        for report in reports:
            say(f"\n{report.supervisor} / {report.child}\n{report.traceback}")


@click.group(name="system")
def system_() -> None:
    """The host itself, with no daemon running."""


@system_.command()
@click.option("--config", "-c", "config_path", type=click.Path(path_type=Path), help="TOML file.")
@click.option("--state", type=click.Path(path_type=Path), help="The daemon's state directory.")
@click.option("--force", is_flag=True, help="Also when containers have something pinned.")
def teardown(config_path: Path | None, state: Path | None, force: bool) -> None:
    """Remove what the kernel keeps for Holdfast, before it is uninstalled.

    That is a mount namespace, bound in the state directory, with the exits and the unread output
    of containers, and the mounts that clients had activated; what is in them is lost. Refused while
    a daemon runs.
    """
    config = load(config_path, {"state": state.absolute() if state else None})
    with root_lock(config.root):
        kept = vault.pins(str(config.state))
        if kept and not force:
            bundles = sorted({pin.partition("/")[0].replace(",", "/") for pin in kept})
            raise FailedPrecondition(f"pinned for {', '.join(bundles)}; --force gives it up")
        mounts = sorted((config.state / MOUNTS_NAME).glob("*"))
        if mounts and not force:
            raise FailedPrecondition(f"{len(mounts)} mounts are active; --force gives them up")
        for directory in mounts:
            take_off(directory)
        say("removed" if vault.teardown(str(config.state)) or mounts else "nothing is kept")


@click.command(name="kill-actor", hidden=True)
@click.argument("name")
@click.pass_obj
def kill_actor(where: Where, name: str) -> None:
    """End one actor as a fault would; its supervisor decides what follows."""

    async def work() -> None:
        request = admin_pb2.KillActorRequest(name=name)
        async with where.session() as session:
            await session.call("admin/KillActor", request, admin_pb2.KillActorResponse)

    trio.run(work)


@click.command()
@click.option("--since", type=int, default=None, help="Begin after this sequence number.")
@format_option
@click.argument("filters", nargs=-1)
@click.pass_obj
def events(where: Where, since: int | None, output_format: str, filters: tuple[str, ...]) -> None:
    """Print events as they happen.

    FILTERS are containerd's: topic=="/tasks/exit"; an event that passes one is printed.
    """

    async def work() -> None:
        async with where.session() as session:
            async with session.stream("admin/Events", admin_pb2.EventsResponse) as call:
                await call.send(admin_pb2.EventsRequest(filters=filters, since=since))
                await call.end()
                async for event in call:
                    say(event_line(event, output_format))

    trio.run(work)


def event_line(event: admin_pb2.EventsResponse, output_format: str) -> str:
    """One event as a line; the number before it is what `--since` takes."""
    envelope = event.envelope
    stamp = envelope.timestamp.ToJsonString()
    try:
        fields = json_format.MessageToDict(envelope.event, preserving_proto_field_name=True)
    except TypeError:  # somebody else's message, which we have no description of
        fields = {"@type": envelope.event.type_url, "value": envelope.event.value.hex()}
    kind = fields.pop("@type", "")
    if output_format == "json":
        return json.dumps(
            {
                "sequence": event.sequence,
                "timestamp": stamp,
                "namespace": envelope.namespace,
                "topic": envelope.topic,
                "type": kind,
                "event": fields,
            }
        )
    if event.lost_from:
        fields = {"lost_from": event.lost_from, "lost_to": event.sequence}
    told = json.dumps(fields, sort_keys=True)
    return f"{event.sequence} {stamp} {envelope.namespace} {envelope.topic} {told}"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes this command.

    Use it as eval "$(holdfast completion bash)".
    """
    kind = get_completion_class(shell)
    assert kind is not None
    root = context.find_root().command
    say(kind(root, {}, "holdfast", "_HOLDFAST_COMPLETE").source())


COMMANDS = (info, version, tree, crashes, events, system_, kill_actor, completion)
