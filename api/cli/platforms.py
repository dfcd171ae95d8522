"""--platform: for which machines, where an image has something for several."""

from collections.abc import Callable
from typing import Any

import click

from ...actors.errors import InvalidArgument
from ...storage.platform import parse_platform
from ..proto.types_pb2 import Platform


class PlatformType(click.ParamType[Platform]):
    """OS/ARCH[/VARIANT] on the command line, a message in the request."""

    name = "platform"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Platform:
        """The message; what is no platform is a misuse."""
        if isinstance(value, Platform):
            return value
        try:
            found = parse_platform(str(value))
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)
        return Platform(os=found.os, architecture=found.architecture, variant=found.variant)


def platform_option(help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option, which may be repeated."""
    return click.option(
        "--platform",
        "platforms",
        type=PlatformType(),
        multiple=True,
        metavar="OS/ARCH",
        help=help,
    )
