"""`holdfast login` and `logout`: who is let in, where that is kept, and who is told."""

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "registry"))
sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
from bench.daemons import Daemon, running
from command import Command
from pulls import House, box, home, place
from servers import SECRET, USER, Server, registry
from terminal import on_a_terminal

pytestmark = [pytest.mark.root, pytest.mark.slow]

BASIC = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    base = tmp_path_factory.mktemp("pulls")
    with running("holdfast", base, log_level="debug") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with registry(tmp_path_factory.mktemp("plain") / "r") as server:
        yield server


@pytest.fixture(scope="module", params=["basic", "token"])
def private(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A registry that wants to know who pushes, and be it by a token server."""
    folder = tmp_path_factory.mktemp(request.param)
    with registry(folder / "r", auth=request.param) as server:
        yield server


@pytest.fixture
def house(daemon: Daemon, tmp_path: Path) -> Iterator[House]:
    house = home(daemon, tmp_path)
    yield house
    house.gone()


def test_a_login_is_tried_before_it_is_kept(house: House, private: Server) -> None:
    name, target = house.imported(box()), place(private)
    login = ("login", "--username", USER, "--password-stdin", private.authority)
    said = house.holdfast.refused("push", name, target)
    assert f"holdfast login {private.authority}" in said
    said = house.holdfast.refused(*login, stdin="guess\n")
    assert said.endswith("wrong name or password; nothing is kept")
    assert private.authority in said
    assert "401" in said
    assert not house.config.exists()

    done = house.holdfast.raw(*login, stdin=f"{SECRET}\n")
    assert done.stdout == f"logged in at {private.authority} as {USER}\n"
    assert "not encrypted" in done.stderr
    assert house.config.stat().st_mode & 0o777 == 0o600
    auths = json.loads(house.config.read_text())["auths"]
    assert auths == {private.authority: {"auth": BASIC}}
    house.holdfast.run("push", name, target)
    house.gone()
    house.holdfast.run("pull", target)

    logout = ("logout", private.authority)
    assert house.holdfast.run(*logout) == f"logged out at {private.authority}\n"
    assert house.holdfast.run(*logout) == f"not logged in at {private.authority}\n"
    assert json.loads(house.config.read_text())["auths"] == {}
    assert "holdfast login" in house.holdfast.refused("push", target, place(private))


def test_credentials_that_have_become_wrong_are_told_of(house: House, private: Server) -> None:
    house.config.parent.mkdir()
    wrong = base64.b64encode(b"alice:guess").decode()
    house.config.write_text(json.dumps({"auths": {private.authority: {"auth": wrong}}}))
    said = house.holdfast.refused("push", house.imported(box()), place(private))
    assert f"those of {house.config} were shown; try `holdfast login" in said


@pytest.mark.long
def test_a_password_is_typed_unseen(house: House, private: Server) -> None:
    words = [*house.holdfast.words, "login", "-u", USER, private.authority]
    seen, status = on_a_terminal(words, f"{SECRET}\n", "Password", environment=house.environment)
    assert status == 0, seen
    assert SECRET not in seen
    assert f"logged in at {private.authority}" in seen
    given = ("login", private.authority)
    assert "--password-stdin" in house.holdfast.raw(*given).stderr
    assert house.holdfast.raw(*given, "--password-stdin", stdin=SECRET).returncode == 2


def test_a_registry_that_lets_everybody_in_has_not_looked(house: House, plain: Server) -> None:
    words = ("login", "-u", USER, "--password-stdin", f"http://{plain.authority}/v2/")
    done = house.holdfast.raw(*words, stdin=SECRET)
    assert done.stdout == f"logged in at {plain.authority} as {USER}\n"
    assert "has not looked" in done.stderr
    assert "no registry's host" in house.holdfast.refused(*words[:-1], "bad_host", stdin=SECRET)
    assert "invalid reference" in house.holdfast.refused(*words[:-1], "x y", stdin=SECRET)


HELPER = """#!/bin/sh
case $1 in
  get) test -e "$0.kept" || { echo "credentials not found in native keychain"; exit 1; }
       cat "$0.kept";;
  store) cat > "$0.kept";;
  erase) rm "$0.kept";;
esac
"""


@pytest.mark.long
def test_a_helper_keeps_the_password(house: House, private: Server) -> None:
    house.config.parent.mkdir()
    house.config.write_text(json.dumps({"credHelpers": {private.authority: "box"}}))
    program = house.base / "bin/docker-credential-box"
    program.parent.mkdir()
    program.write_text(HELPER)
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    holdfast = Command(house.daemon, {**house.environment, "PATH": path})
    login = ("login", "--username", USER, "--password-stdin", private.authority)
    done = holdfast.raw(*login, stdin=SECRET)
    assert (done.returncode, done.stderr) == (0, "")
    assert SECRET in Path(f"{program}.kept").read_text()
    assert BASIC not in house.config.read_text()
    name = house.imported(box())
    holdfast.run("push", name, place(private))
    # Without the helper in the path it is said, and tried without.
    done = house.holdfast.raw("push", name, place(private))
    assert done.returncode == 1
    assert "warning: docker-credential-box get: " in done.stderr
    holdfast.run("logout", private.authority)
    assert not Path(f"{program}.kept").exists()


def test_a_secret_is_told_to_nobody_but_its_registry(
    house: House, private: Server, tmp_path: Path
) -> None:
    header = "token-in-a-header"
    name, target = house.imported(box()), place(private)
    login = ("login", "--username", USER, "--password-stdin", private.authority)
    said: list[str] = []

    def heard(*words: str, stdin: str | None = None) -> None:
        done = house.holdfast.raw(*words, stdin=stdin)
        said.extend([done.stdout, done.stderr])

    heard(*login, stdin=f"{SECRET}x\n")
    heard(*login, stdin=f"{SECRET}\n")
    heard("push", "--header", f"X-Secret={header}", name, target)
    for mode in ("json", "lines", "bars"):
        heard("pull", "--progress", mode, "--header", f"Authorization={header}", target)
        heard("pull", "--progress", mode, target)
    heard("pull", "--header", header, target)
    heard("pull", f"{private.authority}/never/was:1")
    # A refresh token, which this registry does or does not know.
    for token in (SECRET, f"{SECRET}x"):
        house.config.write_text(
            json.dumps({"auths": {private.authority: {"identitytoken": token}}})
        )
        heard("push", name, place(private))
    heard("logout", private.authority)
    for words in (("crashes", "--traceback"), ("faults",), ("images",), ("content",), ("tree",)):
        heard(*words)
    joined = "\n".join(said)
    assert f"logged in at {private.authority}" in joined
    assert "seen by whoever lists" in joined
    log = (house.daemon.base / "daemon.log").read_text()
    assert "child.ended" in log
    for secret in (SECRET, BASIC, header, "eyJ"):  # the last is how a token of JSON begins
        assert secret not in joined
        assert secret not in log
    for file in (house.daemon.base / "root").glob("holdfast.db*"):
        raw = file.read_bytes()
        assert not any(secret.encode() in raw for secret in (SECRET, BASIC, header))
