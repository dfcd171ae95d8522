"""Programs that start `containerd` get a Holdfast: by its flags, its file, its name."""

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import end_shims_of
from examples import busybox_image

from holdfast.api.identity import REVISION, VERSION

pytestmark = pytest.mark.root

MODULE = [sys.executable, "-m", "holdfast.api.containerd"]
PLACES = """
version = 2
root = "{base}/root"
state = "{base}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
imports = ["{base}/conf.d/*.toml"]
[grpc]
address = "{base}/run/api.sock"
gid = 7
"""


def run(
    *words: str, stdin: bytes = b"", code: int = 0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        [*MODULE, *words], input=stdin, capture_output=True, timeout=60, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    text = subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )
    assert text.returncode == code, (words, text.stdout, text.stderr)
    return text


@contextlib.contextmanager
def daemon(base: Path, words: list[str], address: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that these words start, until it accepts; ended afterwards."""
    with (base / "log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(address))
                break
            said = (base / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        yield process
        process.terminate()
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        end_shims_of(base)


def ctr(address: Path, *words: str) -> str:
    done = subprocess.run(
        ["ctr", "--address", str(address), *words],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def real_default() -> str:
    return subprocess.run(
        ["containerd", "config", "default"], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.slow
def test_a_file_made_for_containerd_starts_a_holdfast_that_ctr_talks_to(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/1.toml").write_text(
        'version = 2\noom_score = 11\n[plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
        '.runc.options]\nBinaryName = "runc"\n[plugins."some.other.v1.part"]\ncolour = "blue"\n'
    )
    file = tmp_path / "config.toml"
    file.write_text(PLACES.format(base=tmp_path))
    busybox_image.build(tmp_path / "busybox.tar")
    address = tmp_path / "run/api.sock"
    words = [*MODULE, "--config", str(file), "-log-level", "debug"]
    with daemon(tmp_path, words, address) as process:
        for path in (address, Path(f"{address}.ttrpc")):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert (path.stat().st_uid, path.stat().st_gid) == (0, 7)
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "11\n"
        ctr(address, "images", "import", str(tmp_path / "busybox.tar"))
        name = busybox_image.DEFAULT_NAME
        assert ctr(address, "run", "--rm", name, "c", "echo", "hello") == "hello\n"
        # crun knows no `features` that runc has; which of the two ran is in the daemon's facts.
        facts = subprocess.run(
            [sys.executable, "-m", "holdfast", "--address", str(address), "info"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "runc version" in facts.stdout
        event = AnyMessage(type_url="example.Event", value=b"1")
        run("--address", str(address), "publish", "--topic", "/a/b", "--namespace", "n",
            stdin=event.SerializeToString())  # fmt: skip
        listened = subprocess.Popen(
            [sys.executable, "-m", "holdfast", "--address", str(address), "events", "--since", "0",
             "--format", "json", 'topic=="/a/b"'], stdout=subprocess.PIPE,
        )  # fmt: skip
        with listened:
            assert listened.stdout is not None
            told = json.loads(listened.stdout.readline())
            listened.terminate()
        assert (told["topic"], told["namespace"], told["type"]) == ("/a/b", "n", "example.Event")
    log = (tmp_path / "log").read_text()
    assert 'plugins.\\"some.other.v1.part\\": colour: no effect here' in log
    assert not address.exists()


@pytest.mark.slow
def test_the_daemon_behaves_so_by_the_name_of_containerd(tmp_path: Path) -> None:
    program = tmp_path / "containerd"
    program.symlink_to(Path(sys.executable).with_name("holdfastd"))
    said = subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout
    assert said.startswith("containerd holdfast ")
    address = tmp_path / "api.sock"
    words = [str(program), "--root", f"{tmp_path}/root", "--state", f"{tmp_path}/state",
             "--address", str(address), "--config", f"{tmp_path}/none.toml"]  # fmt: skip
    with daemon(tmp_path, words, address):
        server = ctr(address, "version").partition("Server:")[2].split()
        assert server[1:4:2] == said.split()[2:]


def test_the_version_is_printed_as_clients_parse_it() -> None:
    """Name, package, version, revision: as the Version service tells them, and `docker info`."""
    real = subprocess.run(["containerd", "-v"], capture_output=True, text=True, check=True).stdout
    for flag in ("-v", "--version", "-version"):
        done = run(flag)
        assert re.fullmatch(r"\S+ \S+ \S+ \S+\n", real)
        assert done.stdout == f"containerd holdfast {VERSION} {REVISION}\n"
        assert done.stderr == ""
        # How programs look for it: the third word, or the first that is a version.
        assert re.fullmatch(r"v?\d+\.\d+\.\d+\S*", done.stdout.split()[2])
        for pattern in (r"[0-9]+\.[0-9]+.[0-9]+", r"\s+v?(\d+\.\d+\.\d+)(?:\s+|$)"):
            found = re.search(pattern, done.stdout)
            assert found is not None
            assert found[0].strip() == VERSION


def test_configurations_are_printed_in_the_latest_version(
    tmp_path: Path, real_default: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(real_default + '\n[proxy_plugins.far]\ntype = "snapshot"\naddress = "/f"\n')
    assert tomllib.loads(run("config", "default").stdout)["version"] == 4
    migrated = run("--config", str(file), "config", "migrate")
    assert migrated.stderr == ""
    dumped = run("-c", str(file), "config", "dump")
    assert dumped.stderr == ""
    file.write_text(migrated.stdout)
    assert run("-c", str(file), "config", "migrate").stdout == migrated.stdout
    for text in (migrated.stdout, dumped.stdout):
        found = tomllib.loads(text)
        assert found["plugins"]["io.containerd.server.v1.grpc"]["max_recv_message_size"] == 16 << 20
        assert found["proxy_plugins"]["far"]["address"] == "/f"


def test_a_dump_holds_what_is_imported_and_remarks_on_the_rest(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/a.toml").write_text('oom_score = 3\ncolour = "blue"\n')
    file = tmp_path / "config.toml"
    file.write_text(PLACES.format(base=tmp_path))
    dumped = run("-c", str(file), "config", "dump")
    assert tomllib.loads(dumped.stdout)["oom_score"] == 3
    assert dumped.stderr == f"containerd: {tmp_path}/conf.d/a.toml: unknown key colour\n"


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("version = 9\n")
    for words, said in (
        (("--config", str(file)), "equal to or less than `4`, got `9`"),
        (("--no-such-flag",), "Incorrect Usage: No such option"),
        (("no-such-command",), "Incorrect Usage: No such command 'no-such-command'"),
        (("publish",), "topic required to publish event"),
        (("--address", f"{tmp_path}/no.sock", "publish", "--topic", "t"), "failed to dial"),
        (("-c", f"{tmp_path}/none.toml", "config", "migrate"), "No such file"),
        (("oci-hook", "true"), "oci-hook: state: "),
    ):
        done = run(*words, code=1)
        assert done.stderr.startswith("containerd: ")
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_hook_becomes_the_program_with_its_arguments_filled_in(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"root": {"path": "rootfs"}}')
    state = {"ociVersion": "1.0", "id": "c1", "bundle": str(tmp_path), "pid": 7,
             "annotations": {"k": "v w"}}  # fmt: skip
    words = ["oci-hook", "/bin/sh", "-c", 'echo "$1" "$2" "$COLOUR"', "sh", "{{id}}-{{pid}}",
             "{{rootfs}}"]  # fmt: skip
    # What Debian's containerd makes of the same words.
    real = subprocess.run(
        ["containerd", *words], input=json.dumps(state), capture_output=True, text=True, check=True,
        env={**os.environ, "COLOUR": '{{annotation "k"}}'},
    )  # fmt: skip
    ours = run(*words, stdin=json.dumps(state).encode(), env={"COLOUR": '{{annotation "k"}}'})
    assert ours.stdout == real.stdout == f"c1-7 {tmp_path}/rootfs v w\n"
