"""login and logout: credentials for registries, where Docker's clients keep them too.

They are shown to the registry before they are kept. A secret is read from standard input or from
the terminal without being shown; no option takes one, as options are in every list of processes.
"""

import os
import sys

import click
import trio

from ...actors.errors import InvalidArgument, PermissionDenied
from ...storage.reference import normalize
from ...storage.registry.auth import Credentials
from ...storage.registry.credentials import HUB, DockerConfig, config_path, host_of
from ..config import Config
from .output import say

SECRET_BYTES_MAX = 64 << 10


@click.command()
@click.option("--username", "-u", default="", metavar="NAME", help="Asked for otherwise.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--plain-http", is_flag=True, help="Speak http, not https, with the registry.")
@click.option(
    "--hosts",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="A folder that tells of registries; the daemon's usual ones otherwise.",
)
@click.argument("host", default=HUB)
def login(
    host: str, username: str, password_stdin: bool, plain_http: bool, hosts: str | None
) -> None:
    """Show a registry who you are, and keep that for pull and push; Docker's Hub by default."""
    host = _host(host)
    given = _given(host, username, password_stdin)
    folders = hosts or Config().registry_hosts
    config = DockerConfig(config_path(os.environ))

    async def work() -> None:
        # Imported here: it brings the HTTP client, which no other command needs.
        from ...storage.registry.login import check_login

        # What the file says of helpers is to be sound before anything is asked of a registry.
        await config.helper_of(host)
        try:
            asked = await check_login(host, given, folders, "http" if plain_http else "")
        except PermissionDenied as error:
            # Without what is advised to those who have not logged in.
            said = str(error).partition(": access denied")[0]
            raise PermissionDenied(f"{said}: wrong name or password; nothing is kept") from error
        helper = await config.store(host, given)
        if not asked:
            _note(f"{host} lets everybody in: it has not looked at the password")
        if not helper:
            _note(
                f"the password lies in {config.path}, readable for you alone but not encrypted;"
                " a credential helper (credsStore) would keep it better"
            )

    trio.run(work)
    say(f"logged in at {host} as {given.username}")


@click.command()
@click.argument("host", default=HUB)
def logout(host: str) -> None:
    """Forget the credentials for a registry; Docker's Hub by default."""
    host = _host(host)
    config = DockerConfig(config_path(os.environ))
    found = trio.run(config.erase, host)
    say(f"logged out at {host}" if found else f"not logged in at {host}")


def _host(text: str) -> str:
    """A registry's host, of whatever a person writes for it."""
    host = host_of(text)
    # Held against the grammar of references: a name that no image can have is a mistake.
    if normalize(f"{host}/x").partition("/")[0] != host:
        raise InvalidArgument(f"{text!r} is no registry's host")
    return host


def _given(host: str, username: str, password_stdin: bool) -> Credentials:
    if password_stdin:
        if not username:
            raise click.UsageError("--password-stdin needs --username")
        raw = sys.stdin.buffer.read(SECRET_BYTES_MAX)
        secret = raw.decode().removesuffix("\n").removesuffix("\r")
    elif not sys.stdin.isatty():
        raise click.UsageError(
            "standard input is no terminal: give the password to --password-stdin"
        )
    else:
        username = username or str(click.prompt(f"Name at {host}", err=True))
        secret = str(click.prompt("Password", hide_input=True, err=True))
    if not secret:
        raise click.UsageError("an empty password")
    if ":" in username:
        raise click.UsageError("a name with a colon cannot be shown to a registry")
    return Credentials(username=username, secret=secret)


def _note(text: str) -> None:
    sys.stderr.write(f"holdfast: {text}\n")


COMMANDS = (login, logout)
