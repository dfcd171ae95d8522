"""The group of all commands, its options, and how a command ends.

Exit status: 0; 1 when the daemon refused, with one line on stderr; 2 when the command was
misused. `run`, `exec` and `attach` give the container's own.
"""

import os
import sys
from typing import NoReturn

import click
import trio

from ...actors.errors import Refusal
from ..config import DEFAULT_ADDRESS
from ..status import CallFailed
from . import (
    containers,
    faults,
    imagecare,
    imagemaking,
    images,
    login,
    pull,
    run,
    stores,
    system,
    why,
)
from .output import one_line
from .session import Where


class Commands(click.Group):
    """A group that lists its commands in the order they were added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--address",
    "-a",
    envvar="HOLDFAST_ADDRESS",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="The daemon's socket.",
)
@click.option(
    "--namespace",
    "-n",
    envvar="HOLDFAST_NAMESPACE",
    default="default",
    show_default=True,
    help="The namespace that containers and images are in.",
)
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0.0),
    default=0.0,
    metavar="SECONDS",
    help="How long a daemon that is just starting may take to answer.",
)
@click.pass_context
def cli(context: click.Context, address: str, namespace: str, wait_s: float) -> None:
    """Run containers under supervision.

    Exit status: 0; 1 when the daemon refused, with one line on stderr; 2 when the command was
    misused. run, exec and attach give the container's own.
    """
    context.obj = Where(address.removeprefix("unix://"), namespace, wait_s)


for _command in (
    *run.COMMANDS,
    *containers.COMMANDS,
    *images.COMMANDS,
    *imagemaking.COMMANDS,
    *pull.COMMANDS,
    *login.COMMANDS,
    *stores.COMMANDS,
    *system.COMMANDS,
    *faults.COMMANDS,
    *why.COMMANDS,
):
    cli.add_command(_command)
for _command in imagecare.COMMANDS:
    images.images.add_command(_command)


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    try:
        # Without standalone mode click hands the status of an exit back as the result.
        status = cli.main(args=args, prog_name="holdfast", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output went away: not our failure, and nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseExceptionGroup as group:
        _complain(_first(group))
    except (Refusal, CallFailed, OSError) as error:
        _complain(error)


def _complain(error: BaseException) -> NoReturn:
    if isinstance(error, KeyboardInterrupt):
        sys.exit(130)
    if isinstance(error, click.exceptions.Exit):
        sys.exit(error.exit_code)
    if not isinstance(error, Refusal | CallFailed | OSError):
        raise error
    sys.stderr.write(f"holdfast: {one_line(str(error))}\n")
    sys.exit(1)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error inside a nursery's wrapping; cancellations are never the reason."""
    for error in group.exceptions:
        inner = _first(error) if isinstance(error, BaseExceptionGroup) else error  # pyright: ignore[reportUnknownArgumentType]
        if not isinstance(inner, trio.Cancelled):
            return inner
    return group
