"""A proxy on the loopback between a client and a registry: it does harm as it is told, and counts.

    proxy = await FaultProxy.listen(nursery, server.authority, script)
    ... proxy.authority ...

The script says of each request what becomes of its answer; the same script does the same harm
again. `sent` tells how many bytes of each path's bodies went to the client.
"""

import base64
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

USER, SECRET = "bob", "looking-glass"
BASIC = "Basic " + base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
CHUNK_BYTES = 64 << 10
HEAD_BYTES_MAX = 64 << 10
SILENT_S = 60.0

KINDS = (
    "cut",
    "cut-head",
    "refuse",
    "stall",
    "stall-head",
    "drip",
    "slow",
    "429",
    "500",
    "truncated",
    "flip",
    "other",
    "long",
    "redirect",
    "redirect-loop",
    "redirect-nowhere",
    "ignore-range",
    "other-range",
    "garbage",
    "404",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What becomes of one answer. `at` is where in its body, `number` decides between variants."""

    kind: str
    at: float = 0.0
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request: `nth` counts those of its method and path."""

    method: str
    path: str
    headers: dict[str, str]
    nth: int


Script = Callable[[Asked], Fault | None]


def no_faults(_: Asked) -> Fault | None:
    return None


@dataclass
class FaultProxy:
    """A listener; `elsewhere` is another origin, which gives the same and must be shown nothing."""

    upstream: str
    script: Script = no_faults
    demands_credentials: bool = False
    bytes_per_s: int = 0
    before: Callable[[Asked], Awaitable[None]] | None = None
    """Waited for before an answer begins."""
    authority: str = ""
    elsewhere: str = ""
    sent: Counter[str] = field(default_factory=Counter[str])
    asked: list[Asked] = field(default_factory=list[Asked])
    shown_elsewhere: list[str] = field(default_factory=list[str])
    counts: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    _paid_until_s: float = 0.0

    @classmethod
    async def listen(
        cls,
        nursery: trio.Nursery,
        upstream: str,
        script: Script = no_faults,
        *,
        demands_credentials: bool = False,
    ) -> "FaultProxy":
        """A proxy that listens as long as the nursery is open."""
        proxy = cls(upstream, script, demands_credentials)
        here = await _listen(nursery, proxy.serve)
        there = await _listen(nursery, proxy.serve_elsewhere)
        proxy.authority, proxy.elsewhere = f"127.0.0.1:{here}", f"localhost:{there}"
        return proxy

    def begin(self, script: Script) -> None:
        """From now on by this script; counts begin anew."""
        self.script = script
        self.sent.clear()
        self.counts.clear()
        self.asked.clear()

    async def serve(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            while (request := await _read_request(stream)) is not None:
                method, path, headers = request
                self.counts[method, path] += 1
                asked = Asked(
                    method=method, path=path, headers=headers, nth=self.counts[method, path]
                )
                self.asked.append(asked)
                if self.demands_credentials and headers.get("authorization") != BASIC:
                    await _answer(stream, 401, {"WWW-Authenticate": 'Basic realm="here"'})
                    continue
                if self.before is not None:
                    await self.before(asked)
                if not await self._harm(stream, asked, self.script(asked)):
                    return

    async def serve_elsewhere(self, stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            while (request := await _read_request(stream)) is not None:
                method, path, headers = request
                if "authorization" in headers:
                    self.shown_elsewhere.append(headers["authorization"])
                asked = Asked(method=method, path=path, headers=headers, nth=0)
                await self._pass_on(stream, asked, None)

    async def _harm(self, stream: trio.SocketStream, asked: Asked, fault: Fault | None) -> bool:
        """Answer; whether the connection goes on."""
        match fault and fault.kind:
            case "refuse":
                return False
            case "stall-head":
                await _silence(stream)
                return False
            case "garbage":
                await stream.send_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n" * 3)
                return False
            case "429" | "500" | "404":
                assert fault is not None
                status = int(fault.kind)
                if status == 500:
                    status = (500, 502, 503)[fault.number % 3]
                wait = {1: "0", 2: "1"}.get(fault.number % 4) if status in (429, 503) else None
                await _answer(stream, status, {"Retry-After": wait} if wait else {})
                return True
            case "redirect" | "redirect-loop" | "redirect-nowhere":
                assert fault is not None
                origin = {
                    "redirect": self.elsewhere,
                    "redirect-loop": self.authority,
                    "redirect-nowhere": "127.0.0.1:9",
                }[fault.kind]
                status = (301, 302, 307, 308)[fault.number % 4]
                await _answer(stream, status, {"Location": f"http://{origin}{asked.path}"})
                return True
            case _:
                return await self._pass_on(stream, asked, fault)

    async def _pass_on(self, stream: trio.SocketStream, asked: Asked, fault: Fault | None) -> bool:
        host, _, port = self.upstream.partition(":")
        kind = "" if fault is None else fault.kind
        headers = dict(asked.headers)
        headers.pop("authorization", None)
        if kind == "ignore-range":
            headers.pop("range", None)
        if kind == "other-range" and "range" in headers:
            begins, _, ends = headers["range"].removeprefix("bytes=").partition("-")
            headers["range"] = f"bytes={max(int(begins) - 7, 0)}-{ends and max(int(ends) - 7, 0)}"
        headers.update(host=self.upstream, connection="close")
        async with await trio.open_tcp_stream(host, int(port)) as upstream:
            lines = [f"{asked.method} {asked.path} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            await upstream.send_all("\r\n".join([*lines, "", ""]).encode())
            head, rest = await _read_head(upstream)
            if fault is None:
                await self._send_whole(stream, asked, head, rest, upstream)
                return True
            body = bytearray(rest)
            while piece := await upstream.receive_some(CHUNK_BYTES):
                body += piece
        return await self._send_harmed(stream, asked, head, bytes(body), fault)

    async def _send_whole(
        self,
        stream: trio.SocketStream,
        asked: Asked,
        head: Sequence[str],
        piece: bytes,
        upstream: trio.SocketStream,
    ) -> None:
        await stream.send_all(_head(head))
        while piece or (piece := await upstream.receive_some(CHUNK_BYTES)):
            await stream.send_all(piece)
            self.sent[asked.path] += len(piece)
            if self.bytes_per_s:
                self._paid_until_s = max(self._paid_until_s, trio.current_time() - 0.05)
                self._paid_until_s += len(piece) / self.bytes_per_s
                await trio.sleep_until(self._paid_until_s)
            piece = b""

    async def _send_harmed(
        self,
        stream: trio.SocketStream,
        asked: Asked,
        head: Sequence[str],
        body: bytes,
        fault: Fault,
    ) -> bool:
        at = min(int(len(body) * fault.at), max(len(body) - 1, 0))
        length: int | None = None
        match fault.kind:
            case "flip" if body:
                flipped = body[at] ^ (1 << fault.number % 8)
                body = body[:at] + bytes([flipped]) + body[at + 1 :]
            case "other":
                body = bytes(len(body))
            case "other-range" if fault.number % 2 and "range" in asked.headers:
                # It says that it gives what was asked for.
                begins, _, ends = asked.headers["range"].removeprefix("bytes=").partition("-")
                body = body if ends else body[: len(body) - min(int(begins), 7)]
                told = f"bytes {begins}-{int(begins) + len(body) - 1}/*"
                head = [line for line in head if not line.lower().startswith("content-range:")]
                head, length = [*head, f"Content-Range: {told}"], len(body)
            case "truncated":
                body = body[:at]
                length = len(body)
            case "long" if fault.number % 2:
                body += bytes(1 + fault.number)
                length = len(body)
            case "long":
                # More comes than was told.
                length, body = len(body), body + bytes(1 + fault.number)
            case _:
                pass
        raw_head = _head(head, None if asked.method == "HEAD" else length)
        match fault.kind:
            case "cut-head":
                await stream.send_all(raw_head[: int(len(raw_head) * fault.at)])
                await _end(stream, abruptly=fault.number % 2 == 0)
                return False
            case "cut":
                await stream.send_all(raw_head + body[:at])
                self.sent[asked.path] += at
                await _end(stream, abruptly=fault.number % 2 == 0)
                return False
            case "stall":
                await stream.send_all(raw_head + body[:at])
                self.sent[asked.path] += at
                await _silence(stream)
                return False
            case "drip" | "slow":
                # A drip is worse than no answer; what is merely slow is waited for.
                size, pause_s = (1, 0.1) if fault.kind == "drip" else (len(body) // 10 + 1, 0.02)
                await stream.send_all(raw_head)
                for begins in range(0, len(body), size):
                    await stream.send_all(body[begins : begins + size])
                    await trio.sleep(pause_s)
            case _:
                await stream.send_all(raw_head + body)
        self.sent[asked.path] += len(body)
        return fault.kind != "long"


async def _listen(
    nursery: trio.Nursery, serve: Callable[[trio.SocketStream], Awaitable[object]]
) -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, serve, listeners)
    port: int = listeners[0].socket.getsockname()[1]
    return port


async def _read_head(stream: trio.SocketStream) -> tuple[Sequence[str], bytes]:
    raw = bytearray()
    while b"\r\n\r\n" not in raw:
        piece = await stream.receive_some(CHUNK_BYTES)
        if not piece or len(raw) > HEAD_BYTES_MAX:
            return (), b""
        raw += piece
    head, _, rest = bytes(raw).partition(b"\r\n\r\n")
    return head.decode("latin-1").split("\r\n"), rest


async def _read_request(stream: trio.SocketStream) -> tuple[str, str, dict[str, str]] | None:
    """One without a body; None at the end of the connection."""
    lines, _ = await _read_head(stream)
    if not lines:
        return None
    method, path, _ = lines[0].split(" ", 2)
    headers = dict(line.split(": ", 1) for line in lines[1:])
    return method, path, {name.lower(): value for name, value in headers.items()}


def _head(lines: Sequence[str], length: int | None = None) -> bytes:
    kept = [line for line in lines if not line.lower().startswith("connection:")]
    if length is not None:
        kept = [line for line in kept if not line.lower().startswith("content-length:")]
        kept.append(f"Content-Length: {length}")
    return "\r\n".join([*kept, "", ""]).encode("latin-1")


async def _answer(stream: trio.SocketStream, status: int, headers: dict[str, str]) -> None:
    lines = [f"HTTP/1.1 {status} Because", "Content-Length: 0"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())


async def _silence(stream: trio.SocketStream) -> None:
    """Say nothing until the other side has enough of it."""
    with trio.move_on_after(SILENT_S):
        while await stream.receive_some(CHUNK_BYTES):
            pass


async def _end(stream: trio.SocketStream, *, abruptly: bool) -> None:
    if abruptly:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await stream.aclose()
