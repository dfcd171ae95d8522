"""images tag, inspect, usage, check, prune, mount, unmount, pin, unpin: what one does with images
that are here."""

import json
import os
import re
import sys
from typing import Any

import click
import trio

from ...storage.labels import PIN_LABEL, PINNED
from ...storage.reference import normalize
from ..proto.services import admin_pb2, images_pb2
from ..proto.types_pb2 import Platform
from .output import format_option, records, say, size
from .platforms import platform_option
from .session import FOREVER, Session, Where

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@click.command()
@click.argument("source")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def tag(where: Where, source: str, names: tuple[str, ...]) -> None:
    """Give an image further names; one that exists points to it afterwards."""

    async def work() -> None:
        async with where.session() as session:
            for name in map(normalize, names):
                request = admin_pb2.TagImageRequest(source=normalize(source), name=name)
                await session.call("admin/TagImage", request, admin_pb2.TagImageResponse)
                say(name)

    trio.run(work)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def inspect(where: Where, names: tuple[str, ...]) -> None:
    """Print all that is known of images, as JSON: documents, layers, sizes, what is here."""

    async def work() -> None:
        async with where.session() as session:
            for name in names:
                request = admin_pb2.InspectImageRequest(name=normalize(name))
                answer = await session.call(
                    "admin/InspectImage", request, admin_pb2.InspectImageResponse
                )
                say(json.dumps(json.loads(answer.document), indent=2, ensure_ascii=False))

    trio.run(work)


@click.command()
@format_option
@click.argument("names", nargs=-1)
@click.pass_obj
def usage(where: Where, output_format: str, names: tuple[str, ...]) -> None:
    """Print what images take on the disk, and all of them together."""

    async def work() -> admin_pb2.ImageUsageResponse:
        request = admin_pb2.ImageUsageRequest(names=[normalize(name) for name in names])
        async with where.session() as session:
            return await session.call(
                "admin/ImageUsage", request, admin_pb2.ImageUsageResponse, FOREVER
            )

    answer = trio.run(work)
    shown = size if output_format == "table" else int
    rows: list[dict[str, Any]] = [
        {
            "name": one.name,
            "content": shown(one.content),
            "snapshots": shown(one.snapshots),
            "shared": shown(one.shared),
        }
        for one in answer.images
    ]
    together = {"content": shown(answer.content), "snapshots": shown(answer.snapshots)}
    rows.append({"name": "" if output_format == "json" else "TOGETHER", **together})
    records(["name", "content", "snapshots", "shared"], rows, output_format=output_format)


@click.command()
@click.option("--verify", is_flag=True, help="Read every blob and compare it with its digest.")
@format_option
@click.argument("names", nargs=-1)
@click.pass_obj
def check(where: Where, verify: bool, output_format: str, names: tuple[str, ...]) -> None:
    """Tell whether images are whole, unpacked and sound; status 1 when one is not."""

    async def work() -> list[admin_pb2.CheckImagesResponse]:
        request = admin_pb2.CheckImagesRequest(
            names=[normalize(name) for name in names], verify=verify
        )
        async with where.session() as session:
            path = "admin/CheckImages"
            async with session.stream(path, admin_pb2.CheckImagesResponse) as call:
                await call.send(request)
                await call.end()
                return [answer async for answer in call]

    answers = trio.run(work)
    rows = [
        {
            "name": answer.name,
            "platform": one.platform,
            "state": one.state,
            "here": f"{one.here}/{one.blobs}",
            "size": f"{size(one.here_bytes)}/{size(one.size_bytes)}",
            "unpacked": list(one.unpacked),
            "digest": one.digest,
            "missing": list(one.missing),
            "damaged": {digest: answer.damaged.get(digest, "") for digest in one.damaged},
        }
        for answer in answers
        for one in answer.platforms
    ]
    columns = ["name", "platform", "state", "here", "size", "unpacked"]
    records(columns, rows, output_format=output_format)
    for answer in answers:
        for digest in answer.missing:
            sys.stderr.write(f"holdfast: {answer.name}: {digest} is not here\n")
        for digest, reason in sorted(answer.damaged.items()):
            sys.stderr.write(f"holdfast: {answer.name}: {digest}: {reason}\n")
    if not all(answer.good for answer in answers):
        sys.exit(1)


@click.command()
@click.option("--all", "-a", "every", is_flag=True, help="Not only what no tag names.")
@click.option("--filter", "filters", multiple=True, help="Only what matches; repeated: or this.")
@click.option("--older-than", metavar="TIME", default="0s", help="Only what is older: 30m, 24h.")
@click.option("--dry-run", is_flag=True, help="Tell what would go.")
@click.pass_obj
def prune(
    where: Where, every: bool, filters: tuple[str, ...], older_than: str, dry_run: bool
) -> None:
    """Remove images that no container is of, save pinned ones; what only they needed goes too."""
    request = admin_pb2.PruneImagesRequest(
        all=every, filters=filters, older_than_s=seconds(older_than), dry_run=dry_run
    )

    async def work() -> admin_pb2.PruneImagesResponse:
        async with where.session() as session:
            return await session.call(
                "admin/PruneImages", request, admin_pb2.PruneImagesResponse, FOREVER
            )

    answer = trio.run(work)
    for name in answer.images:
        say(name)
    sys.stderr.write(f"{size(answer.freed)} {'would be ' if dry_run else ''}freed\n")


def seconds(text: str) -> float:
    """A time as people write it: `90s`, `30m`, `24h`, `7d`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise click.UsageError(f"--older-than: {text!r} is not a number with s, m, h or d")
    return float(found[1]) * UNITS_S[found[2]]


@click.command()
@click.option("--rw", "writable", is_flag=True, help="May be written; the image stays as it is.")
@platform_option("The variant for this one, not for the daemon's.")
@click.option("--snapshotter", default="", help="Whose snapshots; the daemon's default.")
@format_option
@click.argument("image", required=False)
@click.argument("directory", required=False)
@click.pass_obj
def mount(
    where: Where,
    writable: bool,
    platforms: tuple[Platform, ...],
    snapshotter: str,
    output_format: str,
    image: str | None,
    directory: str | None,
) -> None:
    """Mount an image at a directory; without either, list what is mounted."""
    if image is None:
        rows = trio.run(_mounts, where)
        records(
            ["directory", "image", "snapshotter", "writable", "stands"],
            rows,
            output_format=output_format,
        )
        return
    if directory is None:
        raise click.UsageError("mount: IMAGE is to be followed by DIRECTORY")
    if len(platforms) > 1:
        raise click.UsageError("mount: one --platform at most")
    request = admin_pb2.MountImageRequest(
        name=normalize(image),
        directory=os.path.realpath(directory),
        writable=writable,
        snapshotter=snapshotter,
        platform=platforms[0] if platforms else None,
    )

    async def work() -> None:
        async with where.session() as session:
            await session.call("admin/MountImage", request, admin_pb2.MountImageResponse, FOREVER)

    trio.run(work)
    say(request.directory)


async def _mounts(where: Where) -> list[dict[str, Any]]:
    async with where.session() as session:
        request = admin_pb2.ListImageMountsRequest()
        answer = await session.call(
            "admin/ListImageMounts", request, admin_pb2.ListImageMountsResponse
        )
    return [
        {
            "directory": one.directory,
            "image": one.image,
            "snapshotter": one.snapshotter,
            "writable": one.writable,
            "stands": one.stands,
        }
        for one in answer.mounts
    ]


@click.command()
@click.argument("directories", nargs=-1, required=True)
@click.pass_obj
def unmount(where: Where, directories: tuple[str, ...]) -> None:
    """Take images off their directories; what was written there is gone."""

    async def work() -> None:
        async with where.session() as session:
            for directory in map(os.path.realpath, directories):
                request = admin_pb2.UnmountImageRequest(directory=directory)
                await session.call("admin/UnmountImage", request, admin_pb2.UnmountImageResponse)
                say(directory)

    trio.run(work)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def pin(where: Where, names: tuple[str, ...]) -> None:
    """Let images stay whatever is pruned."""
    trio.run(_pin, where, names, PINNED)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def unpin(where: Where, names: tuple[str, ...]) -> None:
    """Let images be pruned like others."""
    trio.run(_pin, where, names, "")


async def _pin(where: Where, names: tuple[str, ...], value: str) -> None:
    async with where.session() as session:
        for name in map(normalize, names):
            await _label(session, name, PIN_LABEL, value)
            say(name)


async def _label(session: Session, name: str, key: str, value: str) -> None:
    image = images_pb2.Image(name=name, labels={key: value} if value else {})
    request = images_pb2.UpdateImageRequest(image=image)
    request.update_mask.paths.append(f"labels.{key}")
    await session.call("Images/Update", request, images_pb2.UpdateImageResponse)


COMMANDS = (tag, inspect, usage, check, prune, mount, unmount, pin, unpin)
