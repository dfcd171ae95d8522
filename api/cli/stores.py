"""snapshots and content: what lies in the stores."""

import sys
import time
from typing import Any

import click
import trio
from google.protobuf.empty_pb2 import Empty

from ..proto.services import content_pb2, snapshots_pb2
from .output import ago, format_option, records, say, size
from .session import Where

snapshotter_option = click.option(
    "--snapshotter", default="overlayfs", show_default=True, help="Whose snapshots."
)


@click.group(invoke_without_command=True)
@snapshotter_option
@click.option("--quiet", "-q", is_flag=True, help="Keys only.")
@format_option
@click.pass_context
def snapshots(context: click.Context, snapshotter: str, quiet: bool, output_format: str) -> None:
    """List snapshots, or work on one."""
    if context.invoked_subcommand is None:
        rows = trio.run(_snapshots, context.obj, snapshotter)
        columns = ["key", "parent", "kind", "created"]
        records(columns, rows, output_format=output_format, quiet=quiet)


async def _snapshots(where: Where, snapshotter: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with where.session() as session:
        path = "Snapshots/List"
        async with session.stream(path, snapshots_pb2.ListSnapshotsResponse) as call:
            await call.send(snapshots_pb2.ListSnapshotsRequest(snapshotter=snapshotter))
            await call.end()
            async for answer in call:
                rows += [
                    {
                        "key": info.name,
                        "parent": info.parent,
                        "kind": snapshots_pb2.Kind.Name(info.kind).lower(),
                        "created": ago(info.created_at.seconds, time.time()),
                        "labels": dict(info.labels),
                    }
                    for info in answer.info
                ]
    return rows


@snapshots.command(name="usage")
@snapshotter_option
@click.argument("key")
@click.pass_obj
def usage(where: Where, snapshotter: str, key: str) -> None:
    """Print how much a snapshot takes on its own."""

    async def work() -> None:
        request = snapshots_pb2.UsageRequest(snapshotter=snapshotter, key=key)
        async with where.session() as session:
            used = await session.call("Snapshots/Usage", request, snapshots_pb2.UsageResponse)
        say(f"{size(used.size)} in {used.inodes} inodes")

    trio.run(work)


@snapshots.command(name="rm")
@snapshotter_option
@click.argument("keys", nargs=-1, required=True)
@click.pass_obj
def remove_snapshots(where: Where, snapshotter: str, keys: tuple[str, ...]) -> None:
    """Remove snapshots that have no children."""

    async def work() -> None:
        async with where.session() as session:
            for key in keys:
                request = snapshots_pb2.RemoveSnapshotRequest(snapshotter=snapshotter, key=key)
                await session.call("Snapshots/Remove", request, Empty)
                say(key)

    trio.run(work)


@click.group(invoke_without_command=True)
@click.option("--quiet", "-q", is_flag=True, help="Digests only.")
@format_option
@click.pass_context
def content(context: click.Context, quiet: bool, output_format: str) -> None:
    """List blobs, or work on one."""
    if context.invoked_subcommand is None:
        rows = trio.run(_content, context.obj)
        columns = ["digest", "size", "created", "labels"]
        records(columns, rows, output_format=output_format, quiet=quiet)


async def _content(where: Where) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with where.session() as session:
        async with session.stream("Content/List", content_pb2.ListContentResponse) as call:
            await call.send(content_pb2.ListContentRequest())
            await call.end()
            async for answer in call:
                rows += [
                    {
                        "digest": info.digest,
                        "size": size(info.size),
                        "created": ago(info.created_at.seconds, time.time()),
                        "labels": dict(info.labels),
                    }
                    for info in answer.info
                ]
    return rows


@content.command(name="get")
@click.argument("digest")
@click.pass_obj
def get(where: Where, digest: str) -> None:
    """Write a blob to standard output."""

    async def work() -> None:
        async with where.session() as session:
            path = "Content/Read"
            async with session.stream(path, content_pb2.ReadContentResponse) as call:
                await call.send(content_pb2.ReadContentRequest(digest=digest))
                await call.end()
                async for answer in call:
                    sys.stdout.buffer.write(answer.data)
        sys.stdout.buffer.flush()

    trio.run(work)


@content.command(name="rm")
@click.argument("digests", nargs=-1, required=True)
@click.pass_obj
def remove_content(where: Where, digests: tuple[str, ...]) -> None:
    """Remove blobs from this namespace."""

    async def work() -> None:
        async with where.session() as session:
            for digest in digests:
                request = content_pb2.DeleteContentRequest(digest=digest)
                await session.call("Content/Delete", request, Empty)
                say(digest)

    trio.run(work)


COMMANDS = (snapshots, content)
