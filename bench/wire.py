"""A gRPC client that blocks, for one thread: as little as can speak to a daemon.

grpcio takes longer over a call than either daemon does, so that with it a bench would measure the
client. This one is the frames of our own server and a socket, and its cost is the same on both
sides.
"""

import socket
from collections import deque
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from holdfast.api.grpc.client import request_headers
from holdfast.api.grpc.codec import PREFIX, MessageBuffer
from holdfast.api.grpc.headers import Headers
from holdfast.api.grpc.http2 import GoAway, Http2

READ_BYTES = 256 << 10
GIVE_BACK_BYTES = 256 << 10
WITHIN_S = 120.0
MESSAGE_BYTES_MAX = 64 << 20


class Refused(Exception):
    """The daemon's status was not OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class _Answer:
    """What has come of one call so far."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.buffer = MessageBuffer(MESSAGE_BYTES_MAX)
        self.fields: Mapping[bytes, bytes] = {}
        self.ungiven = 0
        self.over = False


class Wire:
    """One connection. Calls may be begun one after another and ended in any order."""

    def __init__(self, address: str, metadata: Iterable[tuple[str, str]] = ()) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(WITHIN_S)
        self._socket.connect(address)
        self._http2 = Http2(self, is_client=True, streams_max=0)
        self._answers: dict[int, _Answer] = {}
        self._metadata = dict(metadata)

    def close(self) -> None:
        self._socket.close()

    def call(self, path: str, request: bytes) -> bytes:
        """One request, one answer. Raises Refused, or OSError when the connection is lost."""
        return self.end(self.begin(path, request))

    def begin(self, path: str, request: bytes | None, *, ends: bool = True) -> int:
        """Begin a call; its number. Of a stream that goes on, more may be sent."""
        stream = self._http2.open(request_headers(path, self._metadata))
        self._answers[stream] = _Answer()
        if request is not None:
            self.send(stream, request, ends=ends)
        return stream

    def send(self, stream: int, message: bytes, *, ends: bool = False) -> None:
        """Send one message of a call, waiting for its window."""
        left = memoryview(PREFIX.pack(0, len(message)) + message)
        while left:
            room = self._http2.room(stream)
            if room <= 0:
                self._flush()
                self._receive()
                continue
            part, left = left[:room], left[room:]
            self._http2.send_data(stream, part, end_stream=ends and not left)
        self._flush()

    def next(self, stream: int) -> bytes | None:
        """The next message of a call; None at its good end."""
        answer = self._answers[stream]
        while not answer.messages and not answer.over:
            self._receive()
        if answer.messages:
            return answer.messages.popleft()
        del self._answers[stream]
        code = int(answer.fields.get(b"grpc-status", b"2"))
        if code:
            raise Refused(code, unquote(answer.fields.get(b"grpc-message", b"").decode()))
        return None

    def end(self, stream: int) -> bytes:
        """The only message of a call, which is over then."""
        message = self.next(stream)
        if self.next(stream) is not None or message is None:
            raise Refused(13, "not one answer")
        return message

    def _flush(self) -> None:
        out, self._http2.out = self._http2.out, bytearray()
        if out:
            self._socket.sendall(out)

    def _receive(self) -> None:
        self._flush()
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionResetError("the daemon has hung up")
        self._http2.receive(data)
        self._flush()

    # -- what the frames tell

    def on_headers(self, stream_id: int, headers: Headers) -> None:
        self._answers[stream_id].fields = headers.by_name

    def on_data(self, stream_id: int, data: bytes, window_bytes: int) -> None:
        answer = self._answers[stream_id]
        answer.messages += answer.buffer.feed(data)
        answer.ungiven += window_bytes
        if answer.ungiven >= GIVE_BACK_BYTES:
            self._http2.give_back(stream_id, answer.ungiven)
            answer.ungiven = 0

    def on_end(self, stream_id: int) -> None:
        self._answers[stream_id].over = True

    def on_reset(self, stream_id: int, error_code: int) -> None:
        if (answer := self._answers.get(stream_id)) is not None:
            answer.over = True

    def on_window(self, stream_id: int) -> None:
        pass

    def on_settings(self) -> None:
        pass

    def on_pong(self, data: bytes) -> None:
        pass

    def on_goaway(self, goaway: GoAway) -> None:
        pass
