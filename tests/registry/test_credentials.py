"""Docker's configuration and credential helpers: what is found and kept, and is not told."""

import base64
import json
import os
import stat
from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    Refusal,
    ResourceExhausted,
)
from holdfast.storage.registry import credentials
from holdfast.storage.registry.auth import Credentials
from holdfast.storage.registry.credentials import DockerConfig, config_path, host_of, key_of

SECRET = "open-sesame"
NOBODY = Credentials()
# Keeps one user's secrets in a file beside itself, as Docker's protocol has it.
HELPER = """#!/usr/bin/env python3
import json, pathlib, sys
file = pathlib.Path(__file__).with_suffix(".json")
kept = json.loads(file.read_text()) if file.exists() else {}
said = sys.stdin.read().strip()
match sys.argv[1]:
    case "get":
        if said not in kept:
            print("credentials not found in native keychain"); sys.exit(1)
        print(json.dumps(kept[said]))
    case "store":
        entry = json.loads(said); kept[entry["ServerURL"]] = entry
    case "erase":
        del kept[said]
file.write_text(json.dumps(kept))
"""


def encoded(name: str, secret: str = SECRET) -> str:
    return base64.b64encode(f"{name}:{secret}".encode()).decode()


@pytest.fixture
def config(tmp_path: Path) -> DockerConfig:
    return DockerConfig(tmp_path / "docker/config.json")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is searched for helpers before any other."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def written(config: DockerConfig, document: object) -> None:
    config.path.parent.mkdir(exist_ok=True)
    config.path.write_text(json.dumps(document))


def helper(programs: Path, name: str, script: str = HELPER) -> Path:
    path = programs / f"docker-credential-{name}"
    path.write_text(script)
    path.chmod(0o755)
    return path


def kept_by(path: Path) -> dict[str, dict[str, str]]:
    kept: dict[str, dict[str, str]] = json.loads(path.with_suffix(".json").read_text())
    return kept


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"auth": encoded("ann")}, Credentials(username="ann", secret=SECRET)),
        ({"auth": encoded("ann", "a:b:c")}, Credentials(username="ann", secret="a:b:c")),
        ({"auth": encoded("ann", SECRET + "\0\0")}, Credentials(username="ann", secret=SECRET)),
        ({"username": "ann", "password": SECRET}, Credentials(username="ann", secret=SECRET)),
        ({"auth": encoded("x"), "identitytoken": SECRET}, Credentials(secret=SECRET)),
        ({"registrytoken": SECRET}, Credentials(header=f"Bearer {SECRET}")),
        ({}, NOBODY),
        ("not a table", NOBODY),
    ],
)
async def test_an_entry_is_read_as_docker_wrote_it(
    config: DockerConfig, entry: object, expected: Credentials
) -> None:
    written(config, {"auths": {"box.example": entry}})
    assert await config.find("box.example") == expected


@pytest.mark.parametrize(
    ("key", "host"),
    [
        ("box.example", "box.example"),
        ("https://box.example", "box.example"),
        ("https://box.example/v1/", "box.example"),
        ("box.example:5000", "box.example:5000"),
        ("https://index.docker.io/v1/", "registry-1.docker.io"),
        ("docker.io", "registry-1.docker.io"),
    ],
)
async def test_a_key_means_its_host_and_no_other(config: DockerConfig, key: str, host: str) -> None:
    written(config, {"auths": {key: {"auth": encoded("ann")}}})
    assert (await config.find(host)).username == "ann"
    assert (await config.find(host.upper())).username == "ann"
    for other in ("example", "a.box.example", "box.example.org", f"{host}:1", "box.example:443"):
        assert await config.find(other) == NOBODY


async def test_the_host_itself_comes_before_a_url_of_it(config: DockerConfig) -> None:
    entries = {
        "https://box.example/v1/": {"auth": encoded("old")},
        "box.example": {"auth": encoded("new")},
    }
    written(config, {"auths": entries})
    assert (await config.find("box.example")).username == "new"


async def test_where_there_is_no_file_there_are_no_credentials(config: DockerConfig) -> None:
    assert await config.find("box.example") == NOBODY
    assert not await config.erase("box.example")
    assert not config.path.parent.exists()


def test_the_file_is_where_docker_looks() -> None:
    assert config_path({"HOME": "/h"}) == Path("/h/.docker/config.json")
    assert config_path({"HOME": "/h", "DOCKER_CONFIG": "/d"}) == Path("/d/config.json")
    assert key_of("docker.io") == "https://index.docker.io/v1/"
    assert host_of("https://user@box.example/path") == "box.example"


async def test_what_is_stored_is_found_and_is_for_its_owner_alone(config: DockerConfig) -> None:
    written(config, {"auths": {"other": {"auth": encoded("o")}}, "HttpHeaders": {"a": "b"}})
    config.path.chmod(0o644)
    given = Credentials(username="ann", secret=SECRET)
    assert await config.store("box.example", given) == ""
    assert await config.find("box.example") == given
    assert stat.S_IMODE(config.path.stat().st_mode) == 0o600
    document = json.loads(config.path.read_text())
    assert document["HttpHeaders"] == {"a": "b"}
    assert set(document["auths"]) == {"other", "box.example"}
    await config.store("box.example", Credentials(secret="token"))
    assert await config.find("box.example") == Credentials(secret="token")
    assert await config.erase("box.example")
    assert await config.find("box.example") == NOBODY
    assert (await config.find("other")).username == "o"
    assert os.listdir(config.path.parent) == ["config.json"]


async def test_a_folder_that_is_made_is_for_its_owner_alone(config: DockerConfig) -> None:
    await config.store("docker.io", Credentials(username="ann", secret=SECRET))
    assert stat.S_IMODE(config.path.parent.stat().st_mode) == 0o700
    assert list(json.loads(config.path.read_text())["auths"]) == ["https://index.docker.io/v1/"]
    assert (await config.find("index.docker.io")).username == "ann"


async def test_a_link_to_the_file_stays_one(config: DockerConfig, tmp_path: Path) -> None:
    config.path.parent.mkdir()
    (tmp_path / "dotfiles.json").write_text("{}")
    config.path.symlink_to(tmp_path / "dotfiles.json")
    await config.store("box.example", Credentials(username="ann", secret=SECRET))
    assert config.path.is_symlink()
    assert (await config.find("box.example")).username == "ann"


async def test_many_at_once_lose_nothing(config: DockerConfig) -> None:
    hosts = [f"box{number}.example" for number in range(20)]
    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(config.store, host, Credentials(username=host, secret=SECRET))
    assert [(await config.find(host)).username for host in hosts] == hosts


@pytest.mark.parametrize("text", [f"{{'auths': {SECRET}", f'["{SECRET}"]', f"\xff{SECRET}"])
async def test_a_damaged_file_is_neither_used_nor_overwritten_nor_quoted(
    config: DockerConfig, text: str
) -> None:
    config.path.parent.mkdir()
    config.path.write_text(text, "latin-1")
    given = Credentials(username="ann", secret=SECRET)
    for work in (config.find("h"), config.store("h", given), config.erase("h")):
        with pytest.raises(InvalidArgument, match="mend it or move it away") as refused:
            await work
        assert SECRET not in str(refused.value)
        assert SECRET not in repr(given)
    assert config.path.read_text("latin-1") == text


async def test_a_malformed_entry_is_not_quoted(config: DockerConfig) -> None:
    for auth in (SECRET, base64.b64encode(SECRET.encode()).decode()):
        written(config, {"auths": {"box.example": {"auth": auth}}})
        with pytest.raises(InvalidArgument, match="log in again") as refused:
            await config.find("box.example")
        assert auth not in str(refused.value)


async def test_a_helper_keeps_what_it_is_given(config: DockerConfig, programs: Path) -> None:
    path = helper(programs, "safe")
    written(config, {"credsStore": "safe"})
    given = Credentials(username="ann", secret=SECRET)
    assert await config.store("box.example", given) == "safe"
    assert SECRET not in config.path.read_text()
    # Docker tells by such an entry that somebody is logged in.
    assert json.loads(config.path.read_text())["auths"] == {"box.example": {}}
    assert await config.find("box.example") == given
    await config.store("docker.io", Credentials(secret="token"))
    assert kept_by(path)["https://index.docker.io/v1/"]["Username"] == "<token>"
    assert await config.find("docker.io") == Credentials(secret="token")
    assert await config.erase("box.example")
    assert set(kept_by(path)) == {"https://index.docker.io/v1/"}
    assert await config.find("box.example") == NOBODY
    assert not await config.erase("box.example")


async def test_a_hosts_own_helper_comes_before_the_one_for_all(
    config: DockerConfig, programs: Path
) -> None:
    own, common = helper(programs, "own"), helper(programs, "common")
    written(config, {"credsStore": "common", "credHelpers": {"https://box.example": "own"}})
    for host in ("box.example", "other.example"):
        await config.store(host, Credentials(username=host, secret=SECRET))
    assert set(kept_by(own)) == {"box.example"}
    assert set(kept_by(common)) == {"other.example"}


async def test_what_the_helper_does_not_know_may_be_in_the_file(
    config: DockerConfig, programs: Path
) -> None:
    helper(programs, "safe")
    entries = {"box.example": {"auth": encoded("ann")}}
    written(config, {"credsStore": "safe", "auths": entries})
    assert (await config.find("box.example")).username == "ann"


@pytest.mark.parametrize(
    ("script", "refusal"),
    [
        (f"#!/bin/sh\necho {SECRET}; echo {SECRET} >&2; exit 3", FailedPrecondition),
        (f"#!/bin/sh\necho not json {SECRET}", FailedPrecondition),
        (f"#!/bin/sh\nyes {SECRET}", ResourceExhausted),
        (f"#!/bin/sh\necho {SECRET}; exec sleep 60", DeadlineExceeded),
        # Its child keeps the pipe open when it has ended.
        (f"#!/bin/sh\necho {SECRET}; sleep 20 &", DeadlineExceeded),
        ("no program", FailedPrecondition),
    ],
)
async def test_a_helper_that_fails_is_named_and_not_quoted(
    config: DockerConfig,
    programs: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    refusal: type[Refusal],
) -> None:
    monkeypatch.setattr(credentials, "HELPER_WITHIN_S", 1.0)
    helper(programs, "bad", script)
    written(config, {"credsStore": "bad"})
    with trio.fail_after(20):
        with pytest.raises(refusal, match="docker-credential-bad get") as refused:
            await config.find("box.example")
        assert SECRET not in str(refused.value)


async def test_a_helper_that_does_not_store_leaves_nothing_in_the_file(
    config: DockerConfig, programs: Path
) -> None:
    helper(programs, "bad", "#!/bin/sh\ncat; exit 3")
    written(config, {"credsStore": "bad"})
    with pytest.raises(FailedPrecondition, match="docker-credential-bad store") as refused:
        await config.store("box.example", Credentials(username="ann", secret=SECRET))
    assert SECRET not in str(refused.value)
    assert json.loads(config.path.read_text()) == {"credsStore": "bad"}


@pytest.mark.parametrize("name", ["../evil", "a b", "-rf", "x" * 200, 7])
async def test_a_helper_with_a_strange_name_is_not_run(config: DockerConfig, name: object) -> None:
    written(config, {"credHelpers": {"box.example": name}})
    with pytest.raises(InvalidArgument, match="no good name"):
        await config.find("box.example")
    assert await config.find("other.example") == NOBODY


async def test_a_helper_that_is_not_installed_is_missed(config: DockerConfig) -> None:
    written(config, {"credsStore": "never-was"})
    with pytest.raises(FailedPrecondition, match="install the helper"):
        await config.find("box.example")
