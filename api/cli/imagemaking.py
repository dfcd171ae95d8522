"""convert, commit: images made of images and of containers."""

import click
import trio

from ...storage.reference import normalize
from ..proto.services import admin_pb2
from ..proto.types_pb2 import Platform
from .output import say
from .platforms import platform_option
from .session import FOREVER, Where

COMPRESSIONS = ("keep", "uncompressed", "gzip", "zstd")


@click.command()
@click.option(
    "--compression",
    type=click.Choice(COMPRESSIONS),
    default="keep",
    show_default=True,
    help="How layers are to be compressed; zstd brings OCI's types with it.",
)
@click.option("--oci", is_flag=True, help="OCI's media types instead of Docker's.")
@platform_option("Leave of an index only what is for this one; repeated: and this.")
@click.option("--label", "-l", "labels", multiple=True, metavar="K=V", help="A label of the name.")
@click.argument("source")
@click.argument("name")
@click.pass_obj
def convert(
    where: Where,
    compression: str,
    oci: bool,
    platforms: tuple[Platform, ...],
    labels: tuple[str, ...],
    source: str,
    name: str,
) -> None:
    """Make another image of the same files, and print its digest."""
    pairs = [label.partition("=") for label in labels]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.UsageError("--label: K=V is expected")
    request = admin_pb2.ConvertImageRequest(
        source=normalize(source),
        name=normalize(name),
        compression=compression,
        oci=oci,
        platforms=platforms,
        labels={key: value for key, _, value in pairs},
    )

    async def work() -> admin_pb2.ConvertImageResponse:
        async with where.session() as session:
            return await session.call(
                "admin/ConvertImage", request, admin_pb2.ConvertImageResponse, FOREVER
            )

    say(trio.run(work).digest)


@click.command()
@click.option("--author", "-a", default="", help="Who made it.")
@click.option("--message", "-m", default="", help="What for; in the image's history.")
@click.option(
    "--change",
    "-c",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="A line of a Dockerfile that changes the config: ENV A=1, CMD, ENTRYPOINT, ...",
)
@click.option(
    "--pause/--no-pause",
    default=True,
    show_default=True,
    help="Freeze the container while its files are read.",
)
@click.option(
    "--epoch",
    type=int,
    envvar="SOURCE_DATE_EPOCH",
    metavar="SECONDS",
    help="Instead of the time of day; no file in the layer is younger. [env: SOURCE_DATE_EPOCH]",
)
@click.argument("container")
@click.argument("name")
@click.pass_obj
def commit(
    where: Where,
    author: str,
    message: str,
    changes: tuple[str, ...],
    pause: bool,
    epoch: int | None,
    container: str,
    name: str,
) -> None:
    """Make an image of what a container has changed, and print its digest."""
    request = admin_pb2.CommitContainerRequest(
        container=container,
        name=normalize(name),
        author=author,
        message=message,
        changes=changes,
        pause=pause,
        source_date_epoch=epoch,
    )

    async def work() -> admin_pb2.CommitContainerResponse:
        async with where.session() as session:
            return await session.call(
                "admin/CommitContainer", request, admin_pb2.CommitContainerResponse, FOREVER
            )

    say(trio.run(work).digest)


COMMANDS = (convert, commit)
