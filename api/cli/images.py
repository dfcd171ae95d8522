"""images, import, export."""

import os
import sys
import time
from pathlib import Path
from typing import Any

import click
import trio
from google.protobuf.empty_pb2 import Empty
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from ...actors.errors import FailedPrecondition
from ...storage.labels import PIN_LABEL, PINNED
from ...storage.reference import normalize
from ..grpc.client import ClientCall
from ..proto.services import admin_pb2, images_pb2
from ..proto.types_pb2 import Platform
from ..services.archives import lend
from .output import ago, format_option, records, say, write_all
from .platforms import platform_option
from .session import Where

CHUNK_BYTES = 1 << 20


@click.group(invoke_without_command=True)
@click.option("--quiet", "-q", is_flag=True, help="Names only.")
@format_option
@click.pass_context
def images(context: click.Context, quiet: bool, output_format: str) -> None:
    """List images, or work on one."""
    if context.invoked_subcommand is None:
        rows = trio.run(_list, context.obj)
        columns = ["name", "digest", "created", "labels"]
        records(columns, rows, output_format=output_format, quiet=quiet)


async def _list(where: Where) -> list[dict[str, Any]]:
    async with where.session() as session:
        answer = await session.call(
            "Images/List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse
        )
    return [
        {
            "name": image.name,
            "digest": image.target.digest,
            "media_type": image.target.media_type,
            "created": ago(image.created_at.seconds, time.time()),
            "labels": dict(image.labels),
        }
        for image in answer.images
    ]


@images.command(name="rm")
@click.option("--force", "-f", is_flag=True, help="Pinned ones too.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def remove(where: Where, force: bool, names: tuple[str, ...]) -> None:
    """Remove images; what nothing else needs goes with them."""

    async def work() -> None:
        async with where.session() as session:
            for name in map(normalize, names):
                found = images_pb2.GetImageRequest(name=name)
                image = (await session.call("Images/Get", found, images_pb2.GetImageResponse)).image
                if image.labels.get(PIN_LABEL) == PINNED and not force:
                    raise FailedPrecondition(
                        f"image {name} is pinned: unpin it, or remove it with --force"
                    )
                request = images_pb2.DeleteImageRequest(name=name, sync=True)
                await session.call("Images/Delete", request, Empty)
                say(name)

    trio.run(work)


@click.command(name="import")
@click.option("--base-name", default="", help="Names for images that bring none.")
@click.option("--no-unpack", "skip_unpack", is_flag=True, help="Leave that to the first run.")
@platform_option("Name and unpack what is for this one, not for the daemon's; repeated: for each.")
@click.option("--all-platforms", is_flag=True, help="Leave no image out for its platforms.")
@click.argument("archive", type=click.Path(allow_dash=True))
@click.pass_obj
def import_(
    where: Where,
    base_name: str,
    skip_unpack: bool,
    platforms: tuple[Platform, ...],
    all_platforms: bool,
    archive: str,
) -> None:
    """Take in an OCI or Docker archive; - is standard input."""
    first = admin_pb2.ImportRequest(
        base_name=base_name,
        skip_unpack=skip_unpack,
        platforms=platforms,
        all_platforms=all_platforms,
    )
    trio.run(_import, where, archive, first)


async def _import(where: Where, archive: str, first: admin_pb2.ImportRequest) -> None:
    source = 0 if archive == "-" else os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    total = None if source == 0 else Path(archive).stat().st_size
    # Bars on a terminal's stderr; the names that came in are the answer, on stdout.
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        bar = progress.add_task("receive", total=total)
        async with where.session() as session:
            # The daemon reads a file by itself, if it can.
            told = lend(source) if source else {}
            async with session.stream("admin/Import", admin_pb2.ImportResponse, told) as call:
                await call.send(first)
                async with trio.open_nursery() as nursery:
                    async for answer in call:
                        if answer.step == "receive" and answer.subject:
                            progress.update(bar, total=None)
                            await call.end()
                        elif answer.step == "receive":
                            nursery.start_soon(_feed, source, call, progress, bar)
                        if answer.step == "done":
                            say(answer.subject)
                        else:
                            progress.update(bar, description=answer.step)
                            if not console.is_terminal:
                                sys.stderr.write(f"{answer.step} {answer.subject}\n")
    if source:
        os.close(source)


async def _feed(
    source: int, call: ClientCall[admin_pb2.ImportResponse], progress: Progress, bar: TaskID
) -> None:
    while data := await trio.to_thread.run_sync(os.read, source, CHUNK_BYTES):
        await call.send(admin_pb2.ImportRequest(data=data))
        progress.advance(bar, len(data))
    await call.end()


@click.command()
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(allow_dash=True),
    help="The archive; - is standard output.",
)
@platform_option("Of an image for several, what is for this one.")
@click.option("--all-platforms", is_flag=True, help="All that is listed, and all must be here.")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def export(
    where: Where,
    output: str,
    platforms: tuple[Platform, ...],
    all_platforms: bool,
    names: tuple[str, ...],
) -> None:
    """Write images as one OCI archive: what is here of them as a whole."""

    async def work() -> None:
        request = admin_pb2.ExportRequest(
            images=[normalize(name) for name in names],
            platforms=platforms,
            all_platforms=all_platforms,
        )
        partial = Path(output + ".partial")
        target = 1 if output == "-" else os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        async with where.session() as session:
            async with session.stream("admin/Export", admin_pb2.ExportResponse) as call:
                await call.send(request)
                await call.end()
                async for answer in call:
                    await trio.to_thread.run_sync(write_all, target, answer.data)
        if target != 1:
            os.close(target)
            partial.rename(output)

    try:
        trio.run(work)
    except BaseException:
        Path(output + ".partial").unlink(missing_ok=True)
        raise


COMMANDS = (images, import_, export)
