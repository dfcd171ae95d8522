"""Whom the swept daemon asks: a registry that has an archive's image, and Debian's containerd,
which keeps the snapshots of a proxy plugin. Each is started when it is first needed."""

import contextlib
import http.server
import json
import socket
import subprocess
import tarfile
import threading
import time
from pathlib import Path

from bench.daemons import command

from .sweep_view import SNAPSHOTTER, THEIRS

MANIFESTS = "/manifests/"
STARTS_WITHIN_S = 20.0
ENDS_WITHIN_S = 20.0

_registries: dict[Path, http.server.ThreadingHTTPServer] = {}
_containerds: dict[Path, subprocess.Popen[bytes]] = {}


def end(base: Path) -> None:
    """End those of a daemon below a directory."""
    server = _registries.pop(base, None)
    if server is not None:
        server.shutdown()
        server.server_close()
    process = _containerds.pop(base, None)
    if process is not None:
        process.kill()
        process.wait(ENDS_WITHIN_S)


def registry(archive: Path) -> str:
    """Where a registry serves the one image of an archive, by whatever name."""
    if archive.parent not in _registries:
        _registries[archive.parent] = _serve(archive)
    port = _registries[archive.parent].server_port
    return f"127.0.0.1:{port}/library/other:latest"


def _serve(archive: Path) -> http.server.ThreadingHTTPServer:
    with tarfile.open(archive) as tar:
        files = {one.name: tar.extractfile(one).read() for one in tar if one.isfile()}  # type: ignore[union-attr]
    [top] = json.loads(files["index.json"])["manifests"]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Answer with a blob, or the manifest."""
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            """The same without its bytes."""
            self._answer(with_body=False)

        def _answer(self, *, with_body: bool) -> None:
            is_manifest = MANIFESTS in self.path
            digest = top["digest"] if is_manifest else self.path.rpartition("/")[2]
            body = files.get(f"blobs/{digest.replace(':', '/')}")
            if body is None:
                self.send_error(404)
                return
            kind = top["mediaType"] if is_manifest else "application/octet-stream"
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Docker-Content-Digest", digest)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is logged."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Who asks is killed again and again."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def plugin(base: Path) -> str:
    """The settings of a daemon below a directory, by which it has the snapshots of a containerd."""
    address = base / "theirs/daemon.sock"
    return (
        f'[proxy_plugins.{THEIRS}]\ntype = "snapshot"\n'
        f'address = "{address}"\nsnapshotter = "{SNAPSHOTTER}"\n'
    )


def containerd(house: Path) -> Path:
    """The socket of that containerd, which runs on return. It is ended with all that the
    directory has."""
    base = house / "theirs"
    address = base / "daemon.sock"
    if _accepts(address):
        return address
    base.mkdir(exist_ok=True)
    with (base / "daemon.log").open("ab") as output:
        _containerds[house] = subprocess.Popen(
            command("containerd", base), stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + STARTS_WITHIN_S
    while not _accepts(address):
        assert time.monotonic() < deadline, (base / "daemon.log").read_text()[-2000:]
        time.sleep(0.05)
    return address


def _accepts(address: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(address))
        return True
    return False
