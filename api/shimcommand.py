"""`containerd-shim-holdfast-v1`: our shim as a binary of containerd's shim contract.

    start      opens the socket, leaves a process behind that serves it, prints the address
    delete     removes what is left of a container whose shim has died, prints how it ended
    -v, -info  say what it is; -info also what the OCI runtime can, by options on standard input

A daemon runs it in the container's bundle, with Go's flags. It answers in the words of whoever
asks: up to containerd 1.6 a bare address, JSON when MAX_SHIM_VERSION is set, and, to one that
sends BootstrapParams, a message.
"""

import argparse
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "containerd-shim-holdfast-v1"
SOCKETS = "/run/containerd/s"
VERSION_MAX = 3
FIELDS_READ_MAX = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The command line."""

    namespace: str
    id: str
    address: str
    publish_binary: str
    bundle: str
    debug: bool
    listener: int

    def flags(self) -> list[str]:
        """The same for the process that stays."""
        return [
            *("-namespace", self.namespace, "-id", self.id, "-address", self.address),
            *("-publish-binary", self.publish_binary, *(["-debug"] if self.debug else [])),
        ]


def main(words: Sequence[str] | None = None) -> None:
    """The program."""
    given = _parser().parse_args(words)
    if given.v:
        _say_version()
        return
    if given.info:
        _say_info()
        return
    asked = Asked(
        namespace=given.namespace,
        id=given.id,
        address=given.address,
        publish_binary=given.publish_binary,
        bundle=given.bundle,
        debug=given.debug,
        listener=given.listener,
    )
    for name in ("namespace", "id"):
        if not getattr(asked, name):
            sys.exit(f"{NAME}: shim {name} cannot be empty")
    match given.action:
        case "start":
            start(asked)
        case "delete":
            delete(asked)
        case "serve":
            serve(asked)
        case _:
            sys.exit(f"{NAME}: start or delete, not {given.action!r}")


def start(asked: Asked) -> None:
    """Leaves a front behind, unless one listens already, and prints where."""
    told = _told()
    address = socket_path(asked)
    listener = _listen(address)
    if listener is not None:
        with listener:
            subprocess.Popen(
                [
                    *(sys.executable, "-I", "-m", "holdfast.api.shimcommand", *asked.flags()),
                    *("-listener", str(listener.fileno()), "serve"),
                ],
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
    Path("address").write_text(f"unix://{address}")
    sys.stdout.buffer.write(_answer(asked, told, f"unix://{address}"))


def serve(asked: Asked) -> None:
    """What `start` leaves behind: it ends when it is shut down."""
    from . import shimfront

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # as our shims below: they end when they are asked to
    shimfront.run(
        namespace=asked.namespace,
        id=asked.id,
        address=asked.address,
        ttrpc_address=os.environ.get("TTRPC_ADDRESS", ""),
        publish_binary=asked.publish_binary,
        listener=socket.socket(fileno=asked.listener),
        debug=asked.debug,
    )


def delete(asked: Asked) -> None:
    """Removes what a dead front left, and prints how the container ended."""
    import trio

    from ..actors.errors import Refusal
    from ..runtime.soloend import end_bundle
    from .log import set_up_logging
    from .shimservice import delete_response

    set_up_logging("error")
    try:
        exit = trio.run(end_bundle, Path(asked.bundle or os.getcwd()))
    except Refusal as error:
        sys.exit(f"{NAME}: {error}")
    Path(socket_path(asked)).unlink(missing_ok=True)
    sys.stdout.buffer.write(delete_response(exit).SerializeToString())


def socket_path(asked: Asked) -> str:
    """Where the front of a task listens; short, since a path in sockaddr_un ends at 108 bytes."""
    name = "/".join((asked.address, asked.namespace, asked.id))
    return f"{SOCKETS}/{hashlib.sha256(name.encode()).hexdigest()}"


def _listen(path: str) -> socket.socket | None:
    """A listening socket; None when somebody listens there already."""
    os.makedirs(SOCKETS, mode=0o711, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(path)
        except OSError:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(path) == 0:
                    listener.close()
                    return None
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _answer(asked: Asked, told: bytes, address: str) -> bytes:
    if told:
        from google.protobuf.message import DecodeError

        from .proto.shim import bootstrap_pb2 as boot

        try:
            params = boot.BootstrapParams.FromString(told)
        except DecodeError:
            params = boot.BootstrapParams()
        if params.instance_id == asked.id:  # else it is an Any, whose first field is a type
            result = boot.BootstrapResult(version=VERSION_MAX, address=address, protocol="ttrpc")
            return result.SerializeToString()
    newest = os.environ.get("MAX_SHIM_VERSION", "")
    if not newest.isdigit():
        return address.encode()
    version = min(VERSION_MAX, int(newest))
    return json.dumps({"version": version, "address": address, "protocol": "ttrpc"}).encode()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(NAME, description=__doc__, allow_abbrev=False)
    for name in ("namespace", "id", "address", "publish-binary", "bundle", "socket"):
        parser.add_argument(f"-{name}", default="")
    for name in ("debug", "v", "info"):
        parser.add_argument(f"-{name}", action="store_true")
    parser.add_argument("-listener", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("action", nargs="?", default="")
    return parser


def _say_version() -> None:
    from .identity import REVISION, VERSION

    sys.stdout.write(f"{NAME}:\n  Version:  {VERSION}\n  Revision: {REVISION}\n\n")


def _say_info() -> None:
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.protobuf.message import DecodeError

    from ..actors.errors import Refusal
    from .runtimeinfo import runtime_info

    told = _told()
    try:
        options = AnyMessage.FromString(told) if told else None
        info = runtime_info("io.containerd.holdfast.v1", options)
    except (DecodeError, Refusal) as error:
        sys.exit(f"{NAME}: {error}")
    sys.stdout.buffer.write(info.SerializeToString())


def _told() -> bytes:
    """What a daemon says on standard input, in which a person may have a terminal."""
    return b"" if sys.stdin.isatty() else sys.stdin.buffer.read(FIELDS_READ_MAX)


if __name__ == "__main__":
    main()
