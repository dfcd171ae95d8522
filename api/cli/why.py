"""why: what keeps a record from being collected as garbage, or when it goes."""

import json
from collections.abc import Iterator
from typing import Any

import click
import trio

from ..proto.services import admin_pb2
from .output import format_option, moment, say
from .session import Where

KINDS = ("content", "snapshot", "image", "ingest", "container", "lease")


@click.command()
@click.option("--snapshotter", default="overlayfs", show_default=True, help="Whose snapshot.")
@format_option
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.pass_obj
def why(
    where: Where, snapshotter: str, output_format: str, as_json: bool, kind: str, name: str
) -> None:
    """Say what keeps a record, from a root on, or that it is garbage and when it goes.

    KIND is content (NAME is its digest), snapshot (its key), image, ingest (its ref), container
    or lease.
    """

    async def work() -> admin_pb2.WhyResponse:
        request = admin_pb2.WhyRequest(kind=kind, name=name, snapshotter=snapshotter)
        async with where.session() as session:
            return await session.call("admin/Why", request, admin_pb2.WhyResponse)

    answer = trio.run(work)
    if as_json or output_format == "json":
        say(json.dumps(row(answer), sort_keys=True))
        return
    for line in lines(answer):
        say(line)


def row(answer: admin_pb2.WhyResponse) -> dict[str, Any]:
    """The answer as data."""
    return {
        "kept": answer.kept,
        "chain": [
            {"how": step.how, "kind": step.kind, "name": step.name, "flat": step.flat}
            for step in answer.chain
        ],
        "until": moment(answer.until.seconds),
        "left_s": round(answer.left_s, 3) if answer.HasField("left_s") else None,
        "goes": answer.goes,
        "also_in": list(answer.also_in),
    }


def lines(answer: admin_pb2.WhyResponse) -> Iterator[str]:
    """The answer for people."""
    if not answer.kept:
        yield f"garbage: goes {answer.goes}"
    else:
        until = moment(answer.until.seconds)
        left = f", until {until} ({answer.left_s:.0f} s left)" if until else ""
        yield f"kept: {answer.chain[0].how}{left}"
        for place, step in enumerate(answer.chain):
            arrow = f"{step.how} -> " if place else ""
            flat = " (flat)" if step.flat else ""
            yield f"  {arrow}{step.kind} {step.name}{flat}"
    if answer.also_in:
        yield f"its bytes also in: {', '.join(answer.also_in)}"


COMMANDS = (why,)
