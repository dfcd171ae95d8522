"""`holdfastd`: the host as a daemon, until SIGTERM or SIGINT.

Ready is told to systemd by sd_notify (systemd's sd_notify(3)) once the socket accepts. A second
signal ends the daemon at once; containers run on in either case.
"""

import gc
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import click
import structlog
import trio

from ..actors import failpoints
from ..actors.errors import Refusal
from .config import Config, load
from .host import open_host
from .identity import VERSION
from .log import set_up_logging
from .sockets import serving

log: structlog.stdlib.BoundLogger = structlog.get_logger("holdfastd")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--root", type=click.Path(path_type=Path), help="What outlives a reboot.")
@click.option("--state", type=click.Path(path_type=Path), help="What a reboot may take.")
@click.option("--address", "-a", help="The API's unix socket.")
@click.option("--config", "-c", "config_path", type=click.Path(path_type=Path), help="TOML file.")
@click.option("--log-level", "-l", help="debug, info, warn or error.")
@click.version_option(VERSION)
def daemon(
    root: Path | None,
    state: Path | None,
    address: str | None,
    config_path: Path | None,
    log_level: str | None,
) -> None:
    """Run containers under supervision and serve containerd's API."""
    overrides = {
        "root": root.absolute() if root else None,
        "state": state.absolute() if state else None,
        "address": address.removeprefix("unix://") if address else None,
        "log_level": log_level,
    }
    try:
        config = load(config_path, overrides)
    except Refusal as error:
        raise click.UsageError(str(error)) from error
    run(config)


def run(config: Config, remarks: Sequence[str] = ()) -> None:
    """Be the daemon until a signal comes. `remarks` are told in the log: they are about the
    configuration, which was read before there was one."""
    if os.geteuid() != 0:
        raise click.ClickException("holdfastd must run as root: it mounts and makes namespaces")
    set_up_logging(config.log_level)
    for remark in remarks:
        log.warning("config.ignored", reason=remark)
    if config.oom_score:
        set_oom_score(config.oom_score)
    search_first(config.opt)
    failpoints.enter("daemon")
    trio.run(serve, config)


def search_first(opt: Path) -> None:
    """Find what images have installed before what the host has."""
    os.environ["PATH"] = f"{opt}/bin:{os.environ.get('PATH', os.defpath)}"
    try:
        opt.mkdir(parents=True, exist_ok=True)  # clients install below it, and do not make it
    except OSError as error:
        log.warning("daemon.no_opt", path=str(opt), reason=str(error))


def set_oom_score(score: int) -> None:
    """What we start inherits it; a container whose spec names a score of its own has that one."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(score))
    except OSError as error:
        log.warning("daemon.oom_score_failed", score=score, reason=str(error))


async def serve(config: Config) -> None:
    """Open the host, say that it is ready, and run until a signal comes."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_host(config, serving):
            # The records in memory are many, and no garbage: Python's collector would walk over
            # all of them now and then, while everybody waits.
            gc.freeze()
            log.info("daemon.ready", address=config.address, pid=os.getpid(), version=VERSION)
            notify("READY=1")
            async for number in signals:
                log.info("daemon.stopping", signal=signal.Signals(number).name)
                break
            notify("STOPPING=1")
            # From here on a further signal has its usual effect, in case the end hangs.
            for name in (signal.SIGTERM, signal.SIGINT):
                signal.signal(name, signal.SIG_DFL)
    log.info("daemon.stopped")


def notify(state: str) -> None:
    """Tell the service manager; nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), target)
    except OSError as error:
        log.warning("daemon.notify_failed", address=address, reason=str(error))
