"""A real HTTP server on the loopback that answers as a test says and remembers who asked what.

For what a registry cannot be made to do: to be overloaded, to lead elsewhere, to lie.
"""

import contextlib
import http.server
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.storage.descriptor import OCI_MANIFEST
from holdfast.storage.digest import digest_of

MANIFEST = b'{"schemaVersion":2,"layers":[]}'


@dataclass(frozen=True)
class Seen:
    """One request, as it arrived."""

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    """By names in lower case."""
    body: bytes
    certificate: bool
    """Whether the client showed one."""


@dataclass(frozen=True)
class Answer:
    """What is said to it; `cut` ends the connection after so many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut: int | None = None


Answers = Callable[[Seen], Answer]
"""What to say to a request."""


@dataclass(frozen=True)
class Loopback:
    """A server that runs."""

    authority: str
    url: str
    seen: list[Seen]


@contextlib.contextmanager
def loopback(
    answer: Answers, *, pair: tuple[Path, Path] | None = None, client_ca: Path | None = None
) -> Iterator[Loopback]:
    """A server; `pair` is the certificate and key it speaks TLS with. `client_ca` may have signed
    what clients show, and need not."""
    seen: list[Seen] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def do_GET(self) -> None:
            split = urllib.parse.urlsplit(self.path)
            connection = self.connection
            shown = isinstance(connection, ssl.SSLSocket) and bool(connection.getpeercert(True))
            request = Seen(
                method=self.command,
                path=split.path,
                query=urllib.parse.parse_qs(split.query, keep_blank_values=True),
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self._body(),
                certificate=shown,
            )
            seen.append(request)
            self._say(answer(request))

        do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            raw = b""
            while size := int(self.rfile.readline(), 16):
                raw += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return raw

        def _say(self, said: Answer) -> None:
            if said.cut == 0:
                self.close_connection = True
                return
            self.send_response_only(said.status)
            usual = {"Date": self.date_time_string(), "Content-Length": str(len(said.body))}
            for name, value in {**usual, **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(said.body[: said.cut])
            if said.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that goes away is what some tests are about

    with Server(("127.0.0.1", 0), Handler) as server:
        if pair is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*pair)
            if client_ca is not None:
                context.verify_mode = ssl.CERT_OPTIONAL
                context.load_verify_locations(client_ca)
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        authority = f"localhost:{server.server_port}"
        try:
            yield Loopback(authority, f"http{'s' if pair else ''}://{authority}", seen)
        finally:
            server.shutdown()
            thread.join()


def manifest(raw: bytes = MANIFEST, media_type: str = OCI_MANIFEST) -> Answer:
    """A manifest, as a registry gives it."""
    return Answer(
        body=raw, headers={"Content-Type": media_type, "Docker-Content-Digest": digest_of(raw)}
    )


def told(status: int, code: str, message: str, **headers: str) -> Answer:
    """A refusal, as a registry says it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body, {"Content-Type": "application/json", **named})


def in_turn(*answers: Answer) -> Answers:
    """One answer after another, the last one for ever."""
    left = list(answers)

    def answer(_: Seen) -> Answer:
        return left.pop(0) if len(left) > 1 else left[0]

    return answer


def nobody() -> str:
    """An address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"localhost:{probe.getsockname()[1]}"
