"""faults: what is damaged, lost or in doubt, and the way out of it."""

from typing import Any

import click
import trio

from ..proto.services import admin_pb2
from .output import format_option, moment, records
from .session import Where

COLUMNS = ["id", "kind", "namespace", "key", "reason", "since"]


@click.group(invoke_without_command=True)
@click.option("--quiet", "-q", is_flag=True, help="Ids only.")
@format_option
@click.pass_context
def faults(context: click.Context, quiet: bool, output_format: str) -> None:
    """List what is damaged, lost or in doubt, or give it up.

    While a record is damaged nothing is collected as garbage: what it kept may yet be mended.
    """
    if context.invoked_subcommand is None:
        rows = [row(fault) for fault in trio.run(_faults, context.obj)]
        records(COLUMNS, rows, output_format=output_format, quiet=quiet)


async def _faults(where: Where) -> list[admin_pb2.Fault]:
    async with where.session() as session:
        request = admin_pb2.FaultsRequest()
        return list((await session.call("admin/Faults", request, admin_pb2.FaultsResponse)).faults)


def row(fault: admin_pb2.Fault) -> dict[str, Any]:
    """A fault as a row of the table."""
    return {
        "id": fault.id,
        "kind": fault.kind,
        "namespace": fault.namespace,
        "key": fault.key,
        "reason": fault.reason,
        "since": moment(fault.since.seconds),
        "held": fault.held,
    }


@faults.command(name="remove")
@click.option("--all", "every", is_flag=True, help="All there are.")
@click.argument("ids", nargs=-1, metavar="ID...")
@click.pass_obj
def remove(where: Where, every: bool, ids: tuple[str, ...]) -> None:
    """Give up what these faults name, for good.

    With the last damaged record goes what was kept for its sake. Prints what went.
    """
    if every == bool(ids):
        raise click.UsageError("name faults by their ids, or --all")

    async def work() -> list[admin_pb2.Fault]:
        request = admin_pb2.RemoveFaultsRequest(ids=ids, all=every)
        async with where.session() as session:
            path = "admin/RemoveFaults"
            answer = await session.call(path, request, admin_pb2.RemoveFaultsResponse)
            return list(answer.removed)

    rows = [row(fault) for fault in trio.run(work)]
    records(COLUMNS, rows, output_format="table", quiet=True)


COMMANDS = (faults,)
