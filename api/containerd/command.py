"""The command line of `containerd`, as programs that start one know it.

Flags are Go's: one dash or two, before the command. What a command needs is imported when it runs:
a shim that publishes an event waits for no daemon to be loaded.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from ...actors.errors import Refusal
from ..identity import REVISION, VERSION

NAME = "containerd"
DEFAULT_CONFIG = "/etc/containerd/config.toml"
DEFAULT_ADDRESS = "/run/containerd/containerd.sock"
HOOK = "oci-hook"
LONG = ("config", "log-level", "address", "root", "state", "help", "version", "namespace", "topic")


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; what is wrong is one line on stderr."""
    from ..status import CallFailed

    words = two_dashes(sys.argv[1:] if args is None else args)
    try:
        containerd.main(args=words, prog_name=NAME, standalone_mode=False)
        sys.exit(0)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.UsageError as error:
        _complain(f"Incorrect Usage: {error.format_message()}")
    except click.ClickException as error:
        _complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except (Refusal, CallFailed, OSError) as error:
        _complain(str(error))
    except BaseExceptionGroup as group:
        known, others = group.split((Refusal, CallFailed, OSError))
        if known is None or others is not None:
            raise
        _complain("; ".join(str(error) for error in known.exceptions))


def _complain(message: str) -> NoReturn:
    sys.stderr.write(f"{NAME}: {message}\n")
    sys.exit(1)


def two_dashes(words: Sequence[str]) -> list[str]:
    """The words with two dashes before each flag of ours that Go would take with one; a hook's
    words are its own."""
    known, hook = list(words), list[str]()
    if HOOK in known:
        place = known.index(HOOK)
        known, hook = known[:place], known[place:]
    return [
        f"-{word}" if word.startswith("-") and word[1:].partition("=")[0] in LONG else word
        for word in known
    ] + hook


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": False},
)
@click.option(
    "--config", "-c", default=DEFAULT_CONFIG, show_default=True, help="The configuration file."
)
@click.option("--log-level", "-l", default="", help="From trace and debug to fatal and panic.")
@click.option("--address", "-a", default="", help="The socket of the API.")
@click.option("--root", default="", help="What outlives a reboot.")
@click.option("--state", default="", help="What a reboot may take.")
@click.option("--version", "-v", "show_version", is_flag=True, help="Print the version.")
@click.pass_context
def containerd(
    context: click.Context,
    config: str,
    log_level: str,
    address: str,
    root: str,
    state: str,
    show_version: bool,
) -> None:
    """Holdfast, started as containerd is started.

    Without a command it is the daemon. See `config default` for the settings that are heeded.
    """
    if show_version:
        click.echo(f"{NAME} holdfast {VERSION} {REVISION}")
        context.exit()
    context.obj = {"config": config, "address": address}
    if context.invoked_subcommand is not None:
        return
    from ..boot import load_daemon
    from .settings import daemon_config

    flags = {"root": root, "state": state, "address": address, "log_level": log_level}
    wanted, remarks = daemon_config(Path(config), flags)
    load_daemon().run(wanted, remarks)


@containerd.group(name="config")
def config_() -> None:
    """Print the configuration, in the latest version of its format."""


@config_.command()
def default() -> None:
    """Print the default configuration: the settings that are heeded."""
    from .settings import default_document
    from .toml import dumps

    click.echo(dumps(default_document()), nl=False)


@config_.command()
@click.pass_obj
def dump(given: dict[str, str]) -> None:
    """Print what is used: the defaults, the file and its imports, together."""
    from .document import read
    from .settings import default_document, settings
    from .toml import dumps

    found = read(Path(given["config"]), default_document())
    _, remarks = settings(found.values, given["config"])
    _remark([*found.remarks, *remarks])
    click.echo(dumps(found.values), nl=False)


@config_.command()
@click.pass_obj
def migrate(given: dict[str, str]) -> None:
    """Print the file alone, without its imports, in the latest version."""
    from .document import parse
    from .migration import migrated
    from .toml import dumps

    file = Path(given["config"])
    click.echo(dumps(migrated(parse(file.read_bytes(), str(file)))), nl=False)


def _remark(remarks: Sequence[str]) -> None:
    for remark in remarks:
        click.echo(f"{NAME}: {remark}", err=True)


@containerd.command()
@click.option("--namespace", default="", help="The namespace that the event is of.")
@click.option("--topic", default="", help="The topic of the event.")
@click.pass_obj
def publish(given: dict[str, str], namespace: str, topic: str) -> None:
    """Publish an event, which standard input holds as an Any."""
    from .publish import publish as send

    send(
        (given["address"] or DEFAULT_ADDRESS).removeprefix("unix://"),
        namespace,
        topic,
        sys.stdin.buffer.read(),
    )


@containerd.command(
    name=HOOK, context_settings={"ignore_unknown_options": True, "help_option_names": []}
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def oci_hook(words: tuple[str, ...]) -> None:
    """Become a program, its arguments filled in from the container's state on standard input."""
    from .hook import run

    run(words, sys.stdin.buffer.read(), os.environ)


@containerd.command(name="help", hidden=True)
@click.pass_context
def help_(context: click.Context) -> None:
    """Print the help."""
    assert context.parent is not None
    click.echo(context.parent.get_help())
