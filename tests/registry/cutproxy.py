"""A proxy before a registry that spoils uploads: answers no, or hangs up, at chosen parts."""

import contextlib
import http.client
import http.server
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

REFUSED, LIMITED, CUT, KEPT, TORN, LOST, UNABLE = range(7)
"""Refused: 503, and nothing is handed on. Limited: 429. Cut: hung up in the middle, nothing is
handed on. Kept: the same, and what had come is handed on. Torn: the registry too sees it break off.
Lost: all is handed on, and the answer is not given. Unable: 405, also later."""


@dataclass
class Proxy:
    """What the proxy saw, and what it is to do with which PATCH, counted from 1."""

    authority: str = ""
    faults: Mapping[int, int] = field(default_factory=dict[int, int])
    seen: list[tuple[str, str, int]] = field(default_factory=list[tuple[str, str, int]])
    patches: int = 0
    # Where an upload goes on of which the client was not told.
    on: dict[str, str] = field(default_factory=dict[str, str])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def methods(self) -> list[str]:
        """The methods of the requests so far."""
        return [method for method, _, _ in self.seen]

    def sent_bytes(self) -> int:
        """How many bytes of blobs have come from the client."""
        return sum(size for method, path, size in self.seen if "/blobs/uploads/" in path)

    def forget(self) -> None:
        """Count anew."""
        self.seen.clear()
        self.patches = 0


@contextlib.contextmanager
def cutting(upstream: str) -> Iterator[Proxy]:
    """A proxy before the registry at `upstream`."""
    proxy = Proxy()
    port = int(upstream.rpartition(":")[2])

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            length = int(self.headers.get("Content-Length", "0"))
            fault = None
            with proxy.lock:
                if self.command == "PATCH":
                    proxy.patches += 1
                    fault = proxy.faults.get(proxy.patches)
                    if UNABLE in proxy.faults.values():
                        fault = UNABLE
            half = length // 2 if fault in (CUT, KEPT, TORN) else length
            body = self.rfile.read(half)
            with proxy.lock:
                proxy.seen.append((self.command, self.path, len(body)))
            match fault:
                case None:
                    self._answer(*self._ask(self.path, body))
                case 0 | 1 | 6:
                    status = {REFUSED: 503, LIMITED: 429, UNABLE: 405}[fault]
                    self._answer(status, {"Retry-After": "0"} if fault == LIMITED else {}, b"")
                case _:
                    self._spoil(fault, body, length)
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def _spoil(self, fault: int, body: bytes, length: int) -> None:
            if fault == TORN:
                with socket.create_connection(("127.0.0.1", port)) as broken:
                    head = f"PATCH {self.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
                    broken.sendall(head.encode() + b"\r\n" + body)
            elif fault in (KEPT, LOST):
                _, headers, _ = self._ask(self.path, body)
                if fault == KEPT:
                    place = urllib.parse.urlsplit(headers["Location"])
                    proxy.on[place.path] = f"{place.path}?{place.query}"

        def _ask(self, path: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
            if self.command == "GET":
                path = proxy.on.get(urllib.parse.urlsplit(path).path, path)
            headers = {key: value for key, value in self.headers.items() if key != "Content-Range"}
            headers["Content-Length"] = str(len(body))
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(upstream):
                upstream.request(self.command, path, body, headers)
                with upstream.getresponse() as answer:
                    return answer.status, dict(answer.getheaders()), answer.read()

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
            self.send_response(status)
            for key, value in headers.items():
                if key not in ("Content-Length", "Date", "Connection"):
                    self.send_header(key, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else len(body)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        proxy.authority = f"localhost:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()
