"""pull and push: images from and to registries, by the daemon; and what `run` pulls for itself.

The answer, an image's name with its digest, is on standard output; progress is on standard error.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click
import trio

from ...actors.errors import NotFound, PermissionDenied
from ...storage.platform import host
from ...storage.reference import normalize
from ...storage.registry.credentials import DockerConfig, config_path, host_of
from ..proto import transfer_types_pb2 as types
from ..proto import types_pb2
from ..proto.services import images_pb2
from .output import bytes_of, say
from .platforms import platform_option
from .progress import Display, progress_option, shown
from .session import Session, Where
from .transfers import Keeper, transfer

Policy = Literal["missing", "always", "never"]

# Headers that people put secrets into.
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-registry-auth"})

OPTIONS = (
    click.option("--quiet", "-q", is_flag=True, help="No progress; print the name alone."),
    progress_option,
    click.option("--plain-http", is_flag=True, help="Speak http, not https, with the registry."),
    click.option(
        "--hosts",
        type=click.Path(exists=True, file_okay=False),
        metavar="DIR",
        help="A folder that tells of registries; the daemon's own otherwise.",
    ),
    click.option("--header", multiple=True, metavar="NAME=VALUE", help="Sent with each request."),
    platform_option("For this platform; may be given several times."),
)


def registry_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that pull and push have in common."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@registry_options
@click.option("--all-platforms", is_flag=True, help="For every platform that there is.")
@click.option("--no-unpack", "skip_unpack", is_flag=True, help="Leave that to the first run.")
@click.option("--snapshotter", default="", metavar="NAME", help="The daemon's own otherwise.")
@click.option("--label", "-l", multiple=True, metavar="NAME=VALUE", help="Kept with the image.")
@click.option(
    "--limit-rate", default="", metavar="BYTES", help="A second at most; k, m and g are known."
)
@click.argument("name")
@click.pass_obj
def pull(where: Where, /, name: str, **given: Any) -> None:
    """Bring an image in from a registry, by default for this machine's platform.

    What was brought before a pull broke off is kept for the next one.
    """
    name = normalize(name)
    platforms: list[types_pb2.Platform] = list(given["platforms"])
    if given["all_platforms"] and platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    wanted = platforms or [_here()]
    rate = bytes_of("--limit-rate", given["limit_rate"])
    store = types.ImageStore(
        name=name,
        labels=dict(_pair("--label", text) for text in given["label"]),
        platforms=[] if given["all_platforms"] else wanted,
        unpacks=[
            types.UnpackConfiguration(platform=one, snapshotter=given["snapshotter"])
            for one in ([] if given["skip_unpack"] else wanted)
        ],
    )

    async def work() -> str:
        async with where.session() as session:
            with shown(
                given["progress"], name, unpacks=bool(store.unpacks), quiet=given["quiet"]
            ) as display:
                registry = _registry(name, given, display)
                return await _moved(session, registry, store, registry, display, rate)

    _answer(name, trio.run(work), given["quiet"])


@click.command()
@registry_options
@click.option("--all-platforms", is_flag=True, help="All that the image lists: the default.")
@click.argument("name")
@click.argument("target", default="")
@click.pass_obj
def push(where: Where, /, name: str, target: str, **given: Any) -> None:
    """Bring an image to a registry, under its own name or the one of TARGET."""
    name = normalize(name)
    target = normalize(target) if target else name
    platforms: list[types_pb2.Platform] = list(given["platforms"])
    if given["all_platforms"] and platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    source = types.ImageStore(name=name, platforms=platforms)

    async def work() -> str:
        async with where.session() as session:
            with shown(given["progress"], target, unpacks=False, quiet=given["quiet"]) as display:
                registry = _registry(target, given, display)
                return await _moved(session, source, registry, registry, display)

    _answer(target, trio.run(work), given["quiet"])


async def ensure(session: Session, image: str, policy: Policy, snapshotter: str) -> None:
    """See to it that the image of a new container is here, as far as the policy lets us."""
    name = normalize(image)
    if policy == "never":
        return
    if policy == "missing":
        try:
            await session.call(
                "Images/Get", images_pb2.GetImageRequest(name=name), images_pb2.GetImageResponse
            )
            return
        except NotFound:
            pass
    here = _here()
    store = types.ImageStore(
        name=name,
        platforms=[here],
        unpacks=[types.UnpackConfiguration(platform=here, snapshotter=snapshotter)],
    )
    with shown("auto", name, unpacks=True) as display:
        registry = types.OCIRegistry(reference=name)
        await _moved(session, registry, store, registry, display)


async def _moved(
    session: Session,
    source: types.OCIRegistry | types.ImageStore,
    destination: types.OCIRegistry | types.ImageStore,
    registry: types.OCIRegistry,
    display: Display,
    bytes_per_s: int = 0,
) -> str:
    """Have the daemon move an image, and show how far it is; the digest of what was moved."""
    keeper = Keeper(DockerConfig(config_path(os.environ)), display.warn)
    digest = ""

    def tell(event: types.Progress) -> None:
        nonlocal digest
        if event.event == "saved" or event.event.startswith("Completed "):
            # Of an index pushed for a few platforms it is not the one that lies here.
            digest = event.desc.digest or digest
        display.tell(event)

    try:
        await transfer(
            session,
            source,
            destination,
            registry=registry,
            keeper=keeper,
            tell=tell,
            bytes_per_s=bytes_per_s,
        )
    except PermissionDenied as refusal:
        raise keeper.advise(refusal, host_of(registry.reference)) from refusal
    display.finish()
    return digest


def _registry(name: str, given: dict[str, Any], display: Display) -> types.OCIRegistry:
    headers = dict(_pair("--header", text) for text in given["header"])
    for each in sorted(headers):
        if each.lower() in SECRET_HEADERS:
            display.warn(f"--header {each} is seen by whoever lists this machine's processes")
    resolver = types.RegistryResolver(
        headers=headers,
        host_dir=str(Path(given["hosts"]).absolute()) if given["hosts"] else "",
        default_scheme="http" if given["plain_http"] else "",
    )
    return types.OCIRegistry(reference=name, resolver=resolver)


def _answer(name: str, digest: str, quiet: bool) -> None:
    say(name if quiet else f"{name} {digest}")


def _here() -> types_pb2.Platform:
    here = host()
    return types_pb2.Platform(os=here.os, architecture=here.architecture, variant=here.variant)


def _pair(option: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        # The text itself may hold a secret.
        raise click.UsageError(f"{option}: NAME=VALUE is expected")
    return key, value


COMMANDS = (pull, push)
