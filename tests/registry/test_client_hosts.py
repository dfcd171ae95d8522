"""Several hosts for one reference: mirrors, what they are asked, and what is told when all fail."""

import os
import socket
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))
from clients import blob, fetched, opened_registry
from loopback import Answer, Loopback, Seen, in_turn, loopback, manifest, nobody, told
from servers import certify

from holdfast.actors.errors import FailedPrecondition, NotFound, PermissionDenied, Unavailable
from holdfast.storage.descriptor import describe
from holdfast.storage.registry.auth import Credentials
from holdfast.storage.registry.retry import Patience

RAW = os.urandom(5000)
BLOB = Answer(200, RAW)
NONE = told(404, "UNKNOWN", "not here")
BROKEN = told(500, "BROKEN", "disk full")
REFERENCE = "team.example:5000/tool:1"


def folder(base: Path, server: Loopback | str, *mirrors: tuple[Loopback | str, str]) -> Path:
    """A folder for the reference's host: its server, and mirrors with what is said of each."""
    own = base / "team.example_5000_"
    own.mkdir(parents=True)

    def url(of: Loopback | str) -> str:
        return of if isinstance(of, str) else of.url

    lines = [f'server = "{url(server)}"']
    for mirror, said in mirrors:
        lines += [f'[host."{url(mirror)}"]', said]
    (own / "hosts.toml").write_text("\n".join(lines))
    return base


@pytest.mark.parametrize("failing", [NONE, BROKEN, told(429, "SLOW", "x"), Answer(cut=0)])
async def test_a_mirror_that_fails_gives_way_to_the_server(tmp_path: Path, failing: Answer) -> None:
    with loopback(in_turn(failing)) as mirror, loopback(in_turn(manifest(), BLOB)) as server:
        folders = [folder(tmp_path, server, (mirror, ""))]
        async with opened_registry(REFERENCE, folders=folders) as client:
            await client.resolve()
            assert await fetched(client, blob(RAW)) == RAW
        # Asked once each time, or once in all where it is in trouble, and never again and again.
        asked = 1 if failing.status != 404 or failing.cut == 0 else 2
        assert len(mirror.seen) == asked
        assert len(server.seen) == 2


async def test_a_mirror_is_asked_first_and_told_for_whom(tmp_path: Path) -> None:
    with loopback(in_turn(manifest(), BLOB)) as mirror, loopback(in_turn(NONE)) as server:
        folders = [folder(tmp_path, server, (mirror, ""))]
        async with opened_registry(REFERENCE, folders=folders) as client:
            await client.resolve()
            assert await fetched(client, blob(RAW)) == RAW
        assert [one.query for one in mirror.seen] == [{"ns": ["team.example:5000"]}] * 2
        assert not server.seen


async def test_the_references_own_host_is_not_told_for_whom() -> None:
    with loopback(in_turn(manifest())) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
        assert server.seen[0].query == {}


async def test_a_host_is_asked_for_what_it_can(tmp_path: Path) -> None:
    with (
        loopback(in_turn(BLOB, manifest())) as pulls,
        loopback(in_turn(manifest())) as resolves,
        loopback(in_turn(Answer(201))) as takes,
    ):
        folders = [
            folder(
                tmp_path,
                takes,
                (pulls, 'capabilities = ["pull"]'),
                (resolves, 'capabilities = ["pull", "resolve"]'),
            )
        ]
        async with opened_registry(REFERENCE, folders=folders) as client:
            target = await client.resolve()
            assert await fetched(client, blob(RAW)) == RAW
            raw = b"{}"
            await client.put_manifest(describe(raw, target.media_type), raw, "1")
        assert [one.method for one in resolves.seen] == ["HEAD"]
        assert [one.method for one in pulls.seen] == ["GET"]
        assert [one.method for one in takes.seen] == ["PUT"]
        # By digest, whoever has it may say so.
        by_digest = f"team.example:5000/tool@{target.digest}"
        async with opened_registry(by_digest, folders=folders) as client:
            assert await client.resolve() == target
        assert [one.method for one in pulls.seen] == ["GET", "HEAD"]


async def test_what_no_host_may_do_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "team.example:5000"
    own.mkdir()
    (own / "hosts.toml").write_text('capabilities = ["pull"]')
    async with opened_registry(REFERENCE, folders=[tmp_path]) as client:
        with pytest.raises(FailedPrecondition, match="no host is configured for pull and resolve"):
            await client.resolve()
        with pytest.raises(FailedPrecondition, match="no host is configured for push"):
            await client.begin_upload(blob(RAW))


async def test_the_last_refusal_tells_of_all_hosts(tmp_path: Path) -> None:
    gone = nobody()
    with loopback(in_turn(BROKEN)) as broken, loopback(in_turn(NONE)) as server:
        folders = [folder(tmp_path, server, (f"http://{gone}", ""), (broken, ""))]
        async with opened_registry(REFERENCE, folders=folders) as client:
            for _ in range(2):
                # The kind is the server's: it knows best whether there is such a thing.
                with pytest.raises(NotFound) as said:
                    await fetched(client, blob(RAW))
                text = str(said.value)
                assert text.startswith(f"{REFERENCE}: none of 3 hosts gave it: ")
                assert f"http://{gone}/v2/tool/blobs/" in text
                assert "no connection" in text
                assert "HTTP status 500: BROKEN: disk full" in text
                assert "HTTP status 404: UNKNOWN: not here" in text
                assert "ns=" not in text


async def test_a_mirror_in_trouble_is_asked_last_for_a_while(tmp_path: Path) -> None:
    answers = in_turn(BROKEN, BLOB)
    with loopback(answers) as mirror, loopback(in_turn(BLOB, BLOB, NONE)) as server:
        folders = [folder(tmp_path, server, (mirror, ""))]
        async with opened_registry(REFERENCE, folders=folders) as client:
            for _ in range(3):
                assert await fetched(client, blob(RAW)) == RAW
        # The third was not at the server, and the mirror is all there is left.
        assert (len(mirror.seen), len(server.seen)) == (2, 3)


async def test_a_blob_that_breaks_off_is_continued_by_the_next_host(tmp_path: Path) -> None:
    def rest(seen: Seen) -> Answer:
        begins = int(seen.headers["range"].removeprefix("bytes=").rstrip("-"))
        return Answer(206, RAW[begins:], {"Content-Range": f"bytes {begins}-4999/5000"})

    with loopback(in_turn(Answer(200, RAW, cut=2000))) as mirror, loopback(rest) as server:
        folders = [folder(tmp_path, server, (mirror, ""))]
        async with opened_registry(REFERENCE, folders=folders) as client:
            got = b""

            async def begin() -> None:
                nonlocal got
                async with client.get(blob(RAW)) as (_, pieces):
                    async for piece in pieces:
                        got += piece

            with pytest.raises(Unavailable, match="broke"):
                await begin()
            assert got == RAW[:2000]
            got += await fetched(client, blob(RAW), len(got))
            assert got == RAW
        assert len(server.seen) == 1


async def test_each_host_is_shown_its_own_credentials(tmp_path: Path) -> None:
    def demand(secret: str, good: Answer) -> Answer:
        return told(401, "WHO", "?", WWW_Authenticate=f'Basic realm="{secret}"') if secret else good

    def refuse(_: Seen) -> Answer:
        return demand("x", BLOB)

    async def ask(host: str) -> Credentials:
        asked.append(host)
        return Credentials(username="u", secret=f"for {host}")

    asked: list[str] = []
    with loopback(refuse) as mirror, loopback(refuse) as server:
        folders = [folder(tmp_path, server, (mirror, ""))]
        async with opened_registry(REFERENCE, folders=folders, ask=ask) as client:
            with pytest.raises(PermissionDenied):
                await fetched(client, blob(RAW))
        for one in (mirror, server):
            own = Credentials(username="u", secret=f"for {one.authority}").basic()
            assert {seen.headers.get("authorization", own) for seen in one.seen} == {own}
        # Once, and once more after what was given had been rejected.
        assert asked == [mirror.authority] * 2 + [server.authority] * 2


async def test_a_host_that_is_silent_is_given_up(tmp_path: Path) -> None:
    patience = Patience(attempts_max=2, first_s=0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        folders = [folder(tmp_path, url)]
        own = tmp_path / "team.example_5000_/hosts.toml"
        own.write_text(f'server = "{url}"\nread_timeout = "200ms"')
        async with opened_registry(REFERENCE, folders=folders, patience=patience) as client:
            with trio.fail_after(5), pytest.raises(Unavailable, match="no answer in time"):
                await fetched(client, blob(RAW))


async def test_a_host_that_does_not_take_connections_is_given_up(tmp_path: Path) -> None:
    """Its queue of connections is full: the kernel answers nobody."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        try:
            mirror = f"http://127.0.0.1:{full.getsockname()[1]}"
            with loopback(in_turn(BLOB)) as server:
                folders = [folder(tmp_path, server, (mirror, 'dial_timeout = "300ms"'))]
                async with opened_registry(REFERENCE, folders=folders) as client:
                    with trio.fail_after(5):
                        assert await fetched(client, blob(RAW)) == RAW
        finally:
            for one in waiting:
                one.close()


# -- proxies


async def test_a_proxy_of_the_environment_is_asked_for_others_and_not_for_the_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        loopback(in_turn(manifest())) as proxy,
        loopback(in_turn(BLOB)) as other,
        loopback(in_turn(manifest(), Answer(302, headers={"Location": other.url}))) as server,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        # A name that cannot be looked up: nobody but a proxy would answer for it.
        unnamed = "a" * 64 + ".example"
        monkeypatch.setenv("NO_PROXY", unnamed)
        async with opened_registry(f"{server.authority}/tool:1") as client:
            await client.resolve()
            assert await fetched(client, blob(RAW)) == RAW
        assert (len(proxy.seen), len(server.seen), len(other.seen)) == (0, 2, 1)

        async def resolve(name: str) -> None:
            async with opened_registry(f"{name}/tool:1", scheme="http") as client:
                await client.resolve()

        await resolve("team.example:5000")
        (seen,) = proxy.seen
        assert seen.headers["host"] == "team.example:5000"
        with pytest.raises(Unavailable, match="no address of http"):
            await resolve(f"{unnamed}:5000")
        assert len(proxy.seen) == 1


async def test_tls_goes_through_a_proxy_by_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = tmp_path / "cert.pem", tmp_path / "key.pem"
    certify(*pair, name="team.example")
    with loopback(in_turn(manifest()), pair=pair) as server:
        async with trio.open_nursery() as nursery:
            connected: list[str] = []

            async def tunnel(client: trio.SocketStream) -> None:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += await client.receive_some()
                connected.append(head.split(b"\r\n")[0].decode())
                port = int(server.authority.rpartition(":")[2])
                far = await trio.open_tcp_stream("127.0.0.1", port)
                await client.send_all(b"HTTP/1.1 200 OK\r\n\r\n")

                async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                    try:
                        async for piece in source:
                            await sink.send_all(piece)
                    except trio.BrokenResourceError:
                        pass
                    both.cancel_scope.cancel()

                async with far, client, trio.open_nursery() as both:
                    both.start_soon(carry, client, far)
                    both.start_soon(carry, far, client)

            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, tunnel, listeners)
            port = listeners[0].socket.getsockname()[1]
            monkeypatch.setenv("https_proxy", f"http://user:hidden@127.0.0.1:{port}")
            own = tmp_path / "hosts/team.example"
            own.mkdir(parents=True)
            (own / "ca.crt").write_bytes(pair[0].read_bytes())
            async with opened_registry("team.example/tool:1", folders=[own.parent]) as client:
                await client.resolve()
            assert connected == ["CONNECT team.example:443 HTTP/1.1"]
            monkeypatch.delenv("https_proxy")
            # A file may say so for one host.
            (own / "hosts.toml").write_text(
                f'server = "https://team.example"\nca = "ca.crt"\nproxy = "http://127.0.0.1:{port}"'
            )
            async with opened_registry("team.example/tool:1", folders=[own.parent]) as client:
                await client.resolve()
            assert len(connected) == 2
            nursery.cancel_scope.cancel()


async def test_a_proxy_that_is_none_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks9://user:hidden@127.0.0.1:1")
    with pytest.raises(Exception, match="a proxy of the environment") as said:
        async with opened_registry("team.example/tool:1"):
            pass
    assert "hidden" not in str(said.value)
    monkeypatch.setenv("HTTP_PROXY", f"http://user:hidden@{nobody()}")
    async with opened_registry("team.example/tool:1", scheme="http") as client:
        with pytest.raises(Unavailable) as refused:
            await client.resolve()
    assert "hidden" not in str(refused.value)
