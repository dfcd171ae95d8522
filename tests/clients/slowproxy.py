"""A proxy on the loopback that lets a server's answers through slowly, and counts them."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

PIECE_BYTES = 16 << 10


@dataclass
class SlowProxy:
    """Where it listens, and how much went through; `bytes_per_s` may change on the way."""

    authority: str
    bytes_per_s: float
    passed: int = 0
    _sockets: list[socket.socket] = field(default_factory=list[socket.socket])

    def serve(self, listener: socket.socket, port: int) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            self._sockets += [client, server]
            threading.Thread(target=self._carry, args=(client, server), daemon=True).start()
            threading.Thread(target=self._drip, args=(server, client), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _drip(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                sink.sendall(data)
                self.passed += len(data)
                time.sleep(len(data) / self.bytes_per_s)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._sockets:
            each.close()


@contextlib.contextmanager
def slow_proxy(authority: str, bytes_per_s: float) -> Iterator[SlowProxy]:
    """A proxy before the server of this authority."""
    port = int(authority.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = SlowProxy(f"localhost:{listener.getsockname()[1]}", bytes_per_s)
        thread = threading.Thread(target=proxy.serve, args=(listener, port))
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            proxy.close()
            thread.join()
