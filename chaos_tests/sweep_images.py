"""What is done with images that are here: converted, pruned, made of a container."""

from collections.abc import Sequence

from holdfast.api.cli.session import Session
from holdfast.api.proto.services import admin_pb2

from . import sweep_asks as asks
from . import sweep_box as box
from .sweep_operation import Operation

MADE = "docker.io/library/made:latest"


def operations(other_name: str) -> Sequence[Operation]:
    """These operations. An image of that name is made to be pruned."""
    return [
        Operation(
            name="image convert",
            work=[convert],
            after=[lambda s: asks.remove_image(s, MADE)],
        ),
        Operation(
            name="container commit",
            before=[_create_writer, box.create_task, box.start, box.wait],
            work=[commit],
            after=[lambda s: asks.remove_image(s, MADE), box.discard],
            programs=("daemon", "worker"),
        ),
        Operation(
            name="image prune",
            before=[lambda s: make(s, other_name)],
            work=[lambda s: prune(s, other_name)],
            after=[lambda s: asks.remove_image(s, other_name)],
        ),
    ]


async def convert(session: Session) -> None:
    """Another image of the same files, its layers compressed otherwise."""
    request = admin_pb2.ConvertImageRequest(source=box.IMAGE, name=MADE, compression="zstd")
    await session.call("admin/ConvertImage", request, admin_pb2.ConvertImageResponse)


async def commit(session: Session) -> None:
    """An image of the container, of the same bytes each time."""
    request = admin_pb2.CommitContainerRequest(
        container=box.BOX, name=MADE, pause=True, source_date_epoch=0
    )
    await session.call("admin/CommitContainer", request, admin_pb2.CommitContainerResponse)


async def make(session: Session, name: str) -> None:
    """A converted image under this name: nobody else needs what it is made of."""
    request = admin_pb2.ConvertImageRequest(source=box.IMAGE, name=name, compression="uncompressed")
    await session.call("admin/ConvertImage", request, admin_pb2.ConvertImageResponse)


async def prune(session: Session, name: str) -> None:
    """Forget that image, which no container is of."""
    request = admin_pb2.PruneImagesRequest(all=True, filters=[f"name=={name}"])
    await session.call("admin/PruneImages", request, admin_pb2.PruneImagesResponse)


async def _create_writer(session: Session) -> None:
    await asks.create_container(session, box.BOX, box.IMAGE, "sh", "-c", "echo made > /made")
