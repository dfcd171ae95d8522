"""Debian's docker-registry on the loopback for tests, with the authorizations that it knows."""

import base64
import contextlib
import http.server
import json
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

USER, SECRET = "alice", "wonderland"
# bcrypt of the secret.
HTPASSWD = f"{USER}:$2b$04$YpKXSfFOerMOtNbEYpu0HuHxfhB6mFeLrz0FHnMZd6Hz.KdLh.mQy\n"
CONFIG = """
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {base}/data}}
http:
  addr: 127.0.0.1:{port}
{more}
"""


@dataclass(frozen=True)
class TokenAsked:
    """One request for a token: how, by whom, for what."""

    method: str
    known: bool
    scopes: Sequence[str]


@dataclass(frozen=True)
class Server:
    """A registry that runs: where, and the certificate it shows."""

    authority: str
    base: Path
    certificate: Path
    tokens: Sequence[TokenAsked] = ()
    """What its token server was asked for, so far."""


@contextlib.contextmanager
def registry(
    base: Path, *, auth: str = "", tls: bool = False, client_ca: Path | None = None
) -> Iterator[Server]:
    """A registry; `auth` may be basic or token. `client_ca` signed those whom it lets in."""
    base.mkdir(parents=True)
    port = _free_port()
    certificate, key = base / "cert.pem", base / "key.pem"
    if tls or auth == "token":
        certify(certificate, key)
    lets_in = f", clientcas: [{client_ca}]" if client_ca else ""
    more = f"  tls: {{certificate: {certificate}, key: {key}{lets_in}}}\n" if tls else ""
    tokens: list[TokenAsked] = []
    with contextlib.ExitStack() as stack:
        if auth == "basic":
            (base / "htpasswd").write_text(HTPASSWD)
            more += f"auth: {{htpasswd: {{realm: here, path: {base}/htpasswd}}}}\n"
        elif auth == "token":
            realm = stack.enter_context(token_server(certificate, key, tokens))
            more += (
                f"auth: {{token: {{realm: '{realm}', service: tests, issuer: tests,"
                f" rootcertbundle: {certificate}}}}}\n"
            )
        (base / "config.yml").write_text(CONFIG.format(base=base, port=port, more=more))
        log = stack.enter_context((base / "log").open("wb"))
        process = subprocess.Popen(
            ["docker-registry", "serve", str(base / "config.yml")], stdout=log, stderr=log
        )
        try:
            _wait_until_it_accepts(process, port, base / "log")
            yield Server(f"localhost:{port}", base, certificate, tokens)
        finally:
            process.terminate()
            process.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_accepts(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"the registry does not accept: {log.read_text()[-2000:]}")


def certify(certificate: Path, key: Path, *, name: str = "localhost") -> None:
    """A certificate that signs itself, with its key."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )


@contextlib.contextmanager
def token_server(certificate: Path, key: Path, asked: list[TokenAsked]) -> Iterator[str]:
    """A token server that knows one user; anybody else may pull and not push. It writes down what
    it was asked."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            self._give(query, known=self.headers.get("Authorization") == _basic())

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            form = urllib.parse.parse_qs(self.rfile.read(length).decode())
            by_password = form.get("username") == [USER] and form.get("password") == [SECRET]
            self._give(form, known=by_password or form.get("refresh_token") == [SECRET])

        def _give(self, wanted: dict[str, list[str]], *, known: bool) -> None:
            # Who only logs in asks for no scope.
            scopes = " ".join(wanted.get("scope", [])).split()
            asked.append(TokenAsked(self.command, known, scopes))
            shown = {"refresh_token", "password"} & set(wanted) or self.headers["Authorization"]
            if shown and not known:
                self.send_error(401)
                return
            access: list[dict[str, object]] = []
            for scope in scopes:
                kind, name, actions = scope.split(":")
                allowed = actions.split(",") if known else ["pull"]
                access.append({"type": kind, "name": name, "actions": allowed})
            token = _token(certificate, key, access)
            field = "access_token" if self.command == "POST" else "token"
            raw = json.dumps({field: token}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/token"
        finally:
            server.shutdown()
            thread.join()


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode()


def _token(certificate: Path, key: Path, access: list[dict[str, object]]) -> str:
    lines = certificate.read_text().splitlines()
    header = {"alg": "RS256", "typ": "JWT", "x5c": ["".join(lines[1:-1])]}
    now = int(time.time())
    claims = {
        "iss": "tests",
        "aud": "tests",
        "sub": USER,
        "iat": now,
        "nbf": now - 60,
        "exp": now + 300,
        "access": access,
    }
    signed = ".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-sign", str(key)],
        input=signed.encode(),
        capture_output=True,
        check=True,
    )
    return f"{signed}.{_encoded(done.stdout)}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
