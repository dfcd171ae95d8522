"""`holdfast pull`, `push`, and `run` of an image that is not there."""

import http.server
import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from archives import busybox_layers, oci_archive, tar
from bench.daemons import Daemon, running
from pulls import House, box, home, place, pushed
from servers import SECRET, USER, Server, registry
from slowproxy import slow_proxy
from terminal import on_a_terminal

from holdfast.storage.descriptor import IMAGE_NAME

pytestmark = [pytest.mark.root, pytest.mark.slow]

LAYERS = 8
NAME_DIGEST = re.compile(r"(\S+) (sha256:[0-9a-f]{64})\n")
MIB = 1 << 20


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("pulls")
    with running("holdfast", base, log_level="debug") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry(tmp_path_factory.mktemp("plain") / "r") as server:
        yield server


@pytest.fixture
def house(daemon: Daemon, tmp_path: Path) -> Iterator[House]:
    house = home(daemon, tmp_path)
    yield house
    house.gone()


def test_the_answer_is_on_stdout_and_progress_on_stderr(house: House, plain: Server) -> None:
    name, target = house.imported(box()), place(plain)
    done = house.holdfast.raw("push", name, target)
    said = NAME_DIGEST.fullmatch(done.stdout)
    assert said is not None
    assert said[1] == target
    assert done.stderr.count("layer sha256:") == 4
    assert done.stderr.count(": done ") == 4
    house.gone()
    done = house.holdfast.raw("pull", target)
    assert done.stdout == f"{target} {said[2]}\n"
    lines = [line for line in done.stderr.splitlines() if line.startswith("layer ")]
    for digest in {line.split()[1] for line in lines}:
        states = [line.split()[2] for line in lines if line.split()[1] == digest]
        states = [state for state in states if state != "waiting"]
        assert states == ["downloading", "downloaded", "extracting", "done"]
    assert house.holdfast.run("images", "-q") == f"{target}\n"
    done = house.holdfast.raw("pull", "--quiet", target)
    assert (done.stdout, done.stderr) == (f"{target}\n", "")


def test_events_are_an_object_a_line(house: House, plain: Server) -> None:
    target = pushed(house, plain, box())
    done = house.holdfast.raw("pull", "--progress", "json", target)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    known = {"event", "name", "parents", "digest", "media_type", "progress", "total"}
    assert all({"event"} <= set(event) <= known for event in events)
    complete = {event["digest"]: event for event in events if event["event"] == "complete"}
    assert all(event["progress"] == event["total"] for event in complete.values())
    blobs = house.holdfast.run("content", "-q").split()
    assert set(complete) == set(blobs)
    assert NAME_DIGEST.fullmatch(done.stdout)


def screen_of(house: House, *words: str, **size: int) -> str:
    """What a command draws on a terminal."""
    command = [*house.holdfast.words, *words]
    seen, status = on_a_terminal(command, environment=house.environment, **size)
    assert status == 0, seen
    return seen


def plain_text(seen: str) -> list[str]:
    """The last state of the lines on a screen."""
    last = seen.rpartition("\x1b[1A\x1b[2K")[2]
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen[-len(last) - 2000 :])
    return [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]


def test_each_layer_has_its_bar_on_a_terminal(house: House, plain: Server) -> None:
    target = pushed(house, plain, box(layers=4))
    seen = screen_of(house, "pull", target, columns=100)
    lines = plain_text(seen)
    manifest = lines[-1].split()[1]
    layers = json.loads(house.holdfast.run("content", "get", manifest))["layers"]
    assert len(layers) == 4
    assert lines[-1].startswith(f"{target} sha256:")
    assert "4 of 4 layers" in lines[-2]
    digests = {layer["digest"].removeprefix("sha256:")[:12] for layer in layers}
    assert {line.split()[0] for line in lines[-6:-2]} == digests
    for line in lines[-6:-2]:
        assert line.split()[1] == "done"
        assert "━━━" in line
        assert line.split()[-1] in ("B", "KiB", "MiB")
    # Drawn in place, the cursor hidden and shown again.
    assert "\x1b[1A" in seen
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")


@pytest.mark.long
def test_bars_find_room_on_a_small_terminal(house: House, plain: Server) -> None:
    target = pushed(house, plain, box(layers=LAYERS))
    seen = screen_of(house, "pull", target, rows=6, columns=46)
    lines = plain_text(seen)
    assert f"and {LAYERS - 2} more" in lines
    assert all(len(line) <= 46 for line in lines if not line.startswith(target))
    drawn = re.findall(r"(?:\x1b\[1A\x1b\[2K)+", seen)
    assert max(each.count("\x1b[1A") for each in drawn) < 6


@pytest.mark.long
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(house: House, plain: Server) -> None:
    target = pushed(house, plain, box())
    command = [*house.holdfast.words, "pull", target]
    environment = {**house.environment, "TERM": "dumb"}
    seen, status = on_a_terminal(command, environment=environment)
    assert status == 0
    assert "\x1b" not in seen
    assert ": downloading " in seen


@pytest.mark.long
def test_platforms_are_chosen(house: House, plain: Server) -> None:
    name = house.imported(box(architectures=("amd64", "arm64", "s390x")))
    target = place(plain)
    house.holdfast.run("push", name, target)
    house.gone()

    def pulled(*words: str) -> int:
        house.holdfast.run("pull", *words, target)
        count = len(house.holdfast.run("content", "-q").split())
        house.gone()
        return count

    # An index, the two layers, and for each platform a manifest and a config.
    assert pulled() == 3 + 2
    assert pulled("--platform", "linux/arm64") == 3 + 2
    assert pulled("--platform", "linux/arm64", "--platform", "s390x") == 3 + 4
    assert pulled("--all-platforms") == 3 + 6
    assert "no match for platform" in house.holdfast.refused("pull", "--platform", "mips64", target)
    for words in (("--platform", "a/b/c/d"), ("--platform", "arm64", "--all-platforms")):
        assert house.holdfast.raw("pull", *words, target).returncode == 2


def test_a_push_tells_the_digest_that_the_registry_has(house: House, plain: Server) -> None:
    name = house.imported(box(architectures=("amd64", "arm64")))
    (image,) = house.holdfast.records("images")
    for words, same in ((), True), (("--platform", "linux/arm64"), False):
        target = place(plain)
        digest = house.holdfast.run("push", *words, name, target).split()[1]
        assert (digest == image["digest"]) is same
        repository = target.partition("/")[2].rpartition(":")[0]
        with urllib.request.urlopen(f"http://{plain.authority}/v2/{repository}/manifests/1") as raw:
            assert raw.headers["Docker-Content-Digest"] == digest


@pytest.mark.long
def test_an_image_is_unpacked_where_and_if_it_is_asked_for(house: House, plain: Server) -> None:
    target = pushed(house, plain, box())

    def snapshots(snapshotter: str) -> int:
        return len(house.holdfast.run("snapshots", "-q", "--snapshotter", snapshotter).split())

    house.holdfast.run("pull", "--no-unpack", target)
    assert (snapshots("overlayfs"), snapshots("native")) == (0, 0)
    house.holdfast.run("pull", "--snapshotter", "native", target)
    assert (snapshots("overlayfs"), snapshots("native")) == (0, 2)
    house.holdfast.run("pull", "--label", "team=a", "--label", "b=c=d", target)
    assert snapshots("overlayfs") == 2
    (image,) = house.holdfast.records("images")
    assert image["labels"] == {"team": "a", "b": "c=d"}
    assert house.holdfast.raw("pull", "--label", "none", target).returncode == 2
    assert "nobodys" in house.holdfast.refused("pull", "--snapshotter", "nobodys", target)


@pytest.mark.long
def test_a_pull_may_be_held_to_a_rate(house: House, plain: Server) -> None:
    target = pushed(house, plain, box(layers=3, bytes_each=3 * MIB))
    began = time.monotonic()
    house.holdfast.run("pull", "--limit-rate", "1m", target)
    assert time.monotonic() - began > 2
    assert house.holdfast.raw("pull", "--limit-rate", "fast", target).returncode == 2


@pytest.mark.long
def test_a_name_with_a_digest_is_pulled(house: House, plain: Server) -> None:
    target = pushed(house, plain, box())
    digest = house.holdfast.run("pull", target).split()[1]
    house.gone()
    pinned = f"{target.rpartition(':')[0]}@{digest}"
    assert house.holdfast.run("pull", pinned).split() == [pinned, digest]
    other = f"{target.rpartition(':')[0]}@sha256:{'0' * 64}"
    assert "404" in house.holdfast.refused("pull", other)


def test_run_brings_what_is_missing(house: House, plain: Server) -> None:
    target = pushed(house, plain, box())
    motd = ("busybox", "cat", "/etc/motd")
    assert "not found" in house.holdfast.refused("run", "--pull", "never", target, *motd)
    done = house.holdfast.raw("run", "--rm", target, *motd)
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "downloading" in done.stderr
    done = house.holdfast.raw("run", "--rm", target, *motd)
    assert (done.stdout, done.stderr) == ("hello\n", "")
    # Another image takes the tag.
    layers = [busybox_layers()[0], tar([("etc/motd", b"hello again\n")])]
    newer = house.imported(oci_archive({IMAGE_NAME: "box.example/n:1"}, layers=layers))
    house.holdfast.run("push", newer, target)
    assert house.holdfast.run("run", "--rm", target, *motd) == "hello\n"
    always = ("run", "--rm", "--pull", "always", target)
    assert house.holdfast.run(*always, *motd) == "hello again\n"
    detached = house.holdfast.run("run", "-d", "--pull", "always", target, *motd).strip()
    assert house.holdfast.run("wait", detached) == "0\n"
    house.holdfast.run("rm", detached)


# ---------------------------------------------------------------- what goes wrong


def test_a_refusal_names_host_and_request_in_one_line(house: House, plain: Server) -> None:
    said = house.holdfast.refused("pull", f"{plain.authority}/never/was:1")
    assert f"http://{plain.authority}/v2/never/was/manifests/1" in said
    assert "not found" in said
    assert "localhost:9" in house.holdfast.refused("pull", "localhost:9/box:1")
    assert "invalid reference" in house.holdfast.refused("pull", "UPPER")
    assert "not found" in house.holdfast.refused("push", "box.example/never:was")


def test_what_a_registry_says_moves_no_cursor(house: House) -> None:
    class Hostile(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            raw = b"\x1b[2Jgone\r\nholdfast: all is well\x07\xe2\x80\xae"
            self.send_response(403)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(raw)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            authority = f"localhost:{server.server_port}"
            words = ("login", "-u", USER, "--password-stdin", authority)
            done = house.holdfast.raw(*words, stdin=SECRET)
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == 1
    assert "403" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.removesuffix("\n").isprintable()


@pytest.mark.long
def test_a_hosts_file_and_a_scheme_say_how_a_registry_is_spoken_to(
    house: House, tmp_path: Path
) -> None:
    with registry(tmp_path / "tls", tls=True) as server:
        folder = tmp_path / "hosts" / server.authority
        folder.mkdir(parents=True)
        (folder / "ca.pem").write_bytes(server.certificate.read_bytes())
        (folder / "hosts.toml").write_text(
            f'server = "https://{server.authority}"\nca = "ca.pem"\n'
        )
        hosts = ("--hosts", str(tmp_path / "hosts"))
        name, target = house.imported(box()), place(server)
        assert house.holdfast.raw("push", name, target).returncode == 1
        house.holdfast.run("push", *hosts, name, target)
        house.log_in(server, *hosts)
        house.gone()
        house.holdfast.run("pull", *hosts, target)
    with registry(tmp_path / "plain") as server:
        target = place(server).replace("localhost", "127.0.0.1")
        house.holdfast.run("push", "--plain-http", house.imported(box()), target)


def test_an_interrupt_ends_the_daemons_work_and_keeps_what_was_brought(
    house: House, plain: Server
) -> None:
    size = 6 * MIB
    target = pushed(house, plain, box(layers=3, bytes_each=size))
    with slow_proxy(plain.authority, 2 * MIB) as proxy:
        there = target.replace(plain.authority, proxy.authority)
        words = [*house.holdfast.words, "pull", there]
        process = subprocess.Popen(
            words,
            stderr=subprocess.PIPE,
            env=dict(house.environment),
            # What runs in the background of a shell ignores it, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            deadline = time.monotonic() + 60
            while proxy.passed < size // 2:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 130
        assert b"Traceback" not in said
        # Nobody fetches any more.
        time.sleep(1)
        passed = proxy.passed
        time.sleep(1)
        assert proxy.passed - passed < MIB // 4
        assert "layer-sha256:" in house.ctr("content", "active")
        proxy.bytes_per_s, proxy.passed = 100 * MIB, 0
        house.holdfast.run("pull", there)
        assert proxy.passed < size * 3 // 4
    assert "layer-sha256:" not in house.ctr("content", "active")
