"""Whatever a server says, the client comes to an end with an answer or a refusal: never a fault."""

import contextlib
import os
import random
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))
from clients import Giver, blob, fetched, opened_registry
from loopback import MANIFEST

from holdfast.actors.errors import Refusal, ResourceExhausted, Unavailable
from holdfast.storage.descriptor import OCI_INDEX, OCI_MANIFEST
from holdfast.storage.digest import digest_of
from holdfast.storage.registry import transport
from holdfast.storage.registry.auth import Credentials
from holdfast.storage.registry.retry import Patience

SEED = int(os.environ.get("HOLDFAST_SEED", random.SystemRandom().randrange(1 << 32)))
ROUNDS = 200
ONCE = Patience(attempts_max=2, first_s=0.001, within_s=0.5)
INDEX = b'{"schemaVersion":2,"manifests":[{"mediaType":"x","digest":"sha256:00","size":1}]}'


def said(status: str, body: bytes = b"", *headers: str) -> bytes:
    """A sound answer, as it travels."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


SOUND = [
    said(
        "200 OK",
        MANIFEST,
        f"Content-Type: {OCI_MANIFEST}",
        f"Docker-Content-Digest: {digest_of(MANIFEST)}",
    ),
    said("200 OK", INDEX, f"Content-Type: {OCI_INDEX}", "Link: </x?a=b>; rel=next"),
    said("206 Partial", b"abcd", "Content-Range: bytes 5-8/10"),
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
    said("202 OK", b"", "Location: /upload?x=y", "Range: 0-3"),
    said("302 OK", b"", "Location: http://localhost:9/x"),
    said("202 OK", b"", "Location: http://[::1"),
    said("307 OK", b"", f"Location: http://{'a' * 64}.example/x"),
    said("200 OK", INDEX, f"Content-Type: {OCI_INDEX}", "Link: <http://[>; rel=next"),
    said("401 No", b"", 'WWW-Authenticate: Bearer realm="http://localhost:9/t",scope="a:b:c"'),
    said("401 No", b"", 'WWW-Authenticate: Basic realm="x"'),
    said("429 No", b'{"', "Retry-After: Thu, 01 Jan 2099 00:00:00 GMT"),
    said("500 No", b'{"errors":[{"code":"A","message"'),
]
ODD = [
    b"\r\n",
    b"\x00",
    b"\xff\xfe",
    b": ",
    b"-1",
    b"9" * 30,
    b"%00",
    b"[",
    b'"',
    b"\r\nX\r\n",
    b"//",
]


def spoiled(chance: random.Random) -> bytes:
    """A sound answer with a few things wrong."""
    raw = bytearray(chance.choice(SOUND))
    for _ in range(chance.randrange(5)):
        at = chance.randrange(len(raw) + 1)
        match chance.randrange(4):
            case 0:
                raw[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                raw[at:at] = chance.choice(ODD)
            case 2:
                del raw[at : at + chance.randrange(20)]
            case _:
                del raw[at:]
        if not raw:
            break
    return bytes(raw)


@contextlib.contextmanager
def saying(chance: random.Random) -> Iterator[str]:
    """A server that hears a request's head and says something."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.settimeout(5)
                        if peer.recv(65536):
                            peer.sendall(spoiled(chance))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_no_answer_is_a_fault() -> None:
    print(f"HOLDFAST_SEED={SEED}")
    chance = random.Random(SEED)
    target = blob(b"abcdefghij")
    giver = Giver(Credentials(username="u", secret="p"))
    outcomes = {"answer": 0, "refusal": 0}
    with saying(random.Random(SEED)) as authority:
        for _ in range(ROUNDS):
            async with opened_registry(f"{authority}/x:1", ask=giver, patience=ONCE) as client:
                try:
                    with trio.fail_after(30):
                        match chance.randrange(4):
                            case 0:
                                await client.resolve()
                            case 1:
                                await fetched(client, target, chance.randrange(6))
                            case 2:
                                await client.referrers(target.digest, "kind")
                            case _:
                                upload = await client.begin_upload(target, "other")
                                if upload is not None:
                                    await client.upload_status(upload)
                    outcomes["answer"] += 1
                except Refusal:
                    outcomes["refusal"] += 1
    # Both happen, or this says little.
    assert min(outcomes.values()) > ROUNDS // 20, outcomes


@contextlib.contextmanager
def dripping(head: bytes, drop: bytes) -> Iterator[str]:
    """A server that begins well, and then says a little now and then for ever."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = listener.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.recv(65536)
                        peer.sendall(head)
                        while not over.wait(0.02):
                            peer.sendall(drop)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"localhost:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize(
    ("bound", "head", "drop"),
    [
        ("HEAD_WITHIN_S", b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        ("DOCUMENT_WITHIN_S", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"{"),
    ],
)
async def test_a_slow_drip_has_an_end(
    monkeypatch: pytest.MonkeyPatch, bound: str, head: bytes, drop: bytes
) -> None:
    monkeypatch.setattr(transport, bound, 0.5)
    patience = Patience(attempts_max=1)
    with dripping(head, drop) as authority:
        async with opened_registry(f"{authority}/x:1", patience=patience) as client:
            with trio.fail_after(10), pytest.raises((Unavailable, ResourceExhausted)):
                await client.resolve()
