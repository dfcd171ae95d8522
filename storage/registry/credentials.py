"""Credentials as Docker's clients keep them: in config.json, or with the helper that it names.

    $DOCKER_CONFIG/config.json, else ~/.docker/config.json

    auths         host -> auth (name:secret in base64), identitytoken, registrytoken
    credHelpers   host -> the helper that knows this host
    credsStore    the helper that knows all the others

A helper is a program, docker-credential-NAME, that is told get, store or erase. It has a bounded
time and may say a bounded number of bytes. No secret stands in an error: of what a helper says
only its answer is used.
"""

import base64
import binascii
import fcntl
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trio

from ...actors.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from ..document import Document
from .auth import Credentials

HUB = "docker.io"
HUB_KEY = "https://index.docker.io/v1/"
HUB_NAMES = frozenset({HUB, "index.docker.io", "registry-1.docker.io"})
# Under this name a helper keeps a refresh token.
TOKEN_NAME = "<token>"
HELPER_WITHIN_S = 60.0  # it may ask its user to unlock a keyring
HELPER_BYTES_MAX = 64 << 10
FILE_BYTES_MAX = 4 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNKNOWN_TO_HELPER = b"credentials not found in native keychain"


def config_path(environment: Mapping[str, str]) -> Path:
    """Where Docker's configuration is, or would be."""
    folder = environment.get("DOCKER_CONFIG", "")
    return Path(folder or Path(environment.get("HOME") or Path.home()) / ".docker") / "config.json"


def host_of(text: str) -> str:
    """The host that a key, a URL or a word of a person means: `docker.io` for Docker's Hub."""
    rest = text.partition("://")[2] or text
    host = rest.partition("/")[0].rpartition("@")[2].lower()
    return HUB if host in HUB_NAMES else host


def key_of(host: str) -> str:
    """Under which key Docker's clients keep a host's credentials."""
    return HUB_KEY if host_of(host) == HUB else host_of(host)


@dataclass(frozen=True, slots=True)
class DockerConfig:
    """The credentials of one configuration file and of the helpers that it names."""

    path: Path

    async def find(self, host: str) -> Credentials:
        """What there is for a host; nothing is an answer, a helper that fails is a refusal."""
        document = await trio.to_thread.run_sync(self._read)
        helper = self._helper(document, host)
        if helper:
            found = await _asked_of(helper, host)
            if found != Credentials():
                return found
        return self._kept(document, host)

    async def helper_of(self, host: str) -> str:
        """The name of the helper that keeps a host's credentials; empty where the file does."""
        return self._helper(await trio.to_thread.run_sync(self._read), host)

    async def store(self, host: str, given: Credentials) -> str:
        """Keep credentials for a host; the helper that took them, or nothing for the file."""
        helper = await self.helper_of(host)
        if helper:
            said = {
                "ServerURL": key_of(host),
                "Username": given.username or TOKEN_NAME,
                "Secret": given.secret,
            }
            await _told(helper, "store", json.dumps(said).encode(), host)
            entry: dict[str, object] = {}
        elif given.username:
            raw = f"{given.username}:{given.secret}".encode()
            entry = {"auth": base64.b64encode(raw).decode()}
        else:
            entry = {"identitytoken": given.secret}
        await trio.to_thread.run_sync(self._replace, host, entry)
        return helper

    async def erase(self, host: str) -> bool:
        """Forget what is kept for a host; whether there was anything."""
        document = await trio.to_thread.run_sync(self._read)
        helper = self._helper(document, host)
        found = any(host_of(key) == host_of(host) for key in _table(document, "auths"))
        if helper and await _asked_of(helper, host) != Credentials():
            await _told(helper, "erase", key_of(host).encode(), host)
            found = True
        if found:
            await trio.to_thread.run_sync(self._replace, host, None)
        return found

    # -- the file; what follows blocks

    def _read(self) -> dict[str, object]:
        try:
            with self.path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise FailedPrecondition(f"{self.path}: {error.strerror}") from error
        if len(raw) > FILE_BYTES_MAX:
            raise ResourceExhausted(f"{self.path}: more than {FILE_BYTES_MAX} bytes")
        try:
            document = cast("object", json.loads(raw or b"{}"))
        except ValueError:
            # The decoder's own words would quote the file.
            raise InvalidArgument(f"{self.path}: not JSON; mend it or move it away") from None
        if not isinstance(document, dict):
            raise InvalidArgument(f"{self.path}: not a JSON object; mend it or move it away")
        return cast("dict[str, object]", document)

    def _helper(self, document: Mapping[str, object], host: str) -> str:
        helpers = _table(document, "credHelpers")
        named = [value for key, value in helpers.items() if host_of(key) == host_of(host)]
        name = named[0] if named else document.get("credsStore", "")
        if not isinstance(name, str) or (name and not _HELPER.fullmatch(name)):
            raise InvalidArgument(f"{self.path}: the credential helper for {host} has no good name")
        return name

    def _kept(self, document: Mapping[str, object], host: str) -> Credentials:
        entries = _table(document, "auths")
        # A key that is the host itself comes before one that only means it.
        keys = sorted(entries, key=lambda key: key != key_of(host))
        for key in keys:
            entry = entries[key]
            if host_of(key) != host_of(host) or not isinstance(entry, dict):
                continue
            found = self._credentials(key, Document(cast("dict[str, object]", entry), key))
            if found != Credentials():
                return found
        return Credentials()

    def _credentials(self, key: str, entry: Document) -> Credentials:
        if token := entry.text("registrytoken"):
            return Credentials(header=f"Bearer {token}")
        if token := entry.text("identitytoken"):
            return Credentials(secret=token)
        if encoded := entry.text("auth"):
            try:
                text = base64.b64decode(encoded, validate=True).decode()
            except (binascii.Error, UnicodeDecodeError):
                text = ""
            name, colon, secret = text.partition(":")
            if not colon or not name:
                raise InvalidArgument(f"{self.path}: auth of {key} is malformed: log in again")
            return Credentials(username=name, secret=secret.rstrip("\0"))
        return Credentials(username=entry.text("username"), secret=entry.text("password"))

    def _replace(self, host: str, entry: dict[str, object] | None) -> None:
        """Put a host's entry into the file, or take it out; other writers of ours wait."""
        # A link is followed: people keep this file among others of theirs.
        target = Path(os.path.realpath(self.path))
        try:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(target.parent):
                document = self._read()
                entries = dict(_table(document, "auths"))
                for key in [key for key in entries if host_of(key) == host_of(host)]:
                    del entries[key]
                if entry is not None:
                    entries[key_of(host)] = entry
                document["auths"] = entries
                _write(target, json.dumps(document, indent="\t").encode() + b"\n")
        except OSError as error:
            raise FailedPrecondition(f"{self.path}: {error.strerror}") from error


def _table(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _write(target: Path, raw: bytes) -> None:
    """The whole new file or the whole old one; for its owner alone, who stays the same."""
    file, name = tempfile.mkstemp(dir=target.parent, prefix=".config.json.")
    try:
        with open(file, "wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(file)
            if target.exists():
                owner = target.stat()
                if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file, owner.st_uid, owner.st_gid)
        os.rename(name, target)
    except BaseException:
        os.unlink(name)
        raise


# ---------------------------------------------------------------- helpers


async def _asked_of(helper: str, host: str) -> Credentials:
    try:
        raw = await _told(helper, "get", key_of(host).encode(), host)
    except NotFound:
        return Credentials()
    try:
        answer = Document.parse(raw, f"docker-credential-{helper}")
        name, secret = answer.text("Username"), answer.text("Secret")
    except InvalidArgument:
        raise FailedPrecondition(
            f"docker-credential-{helper} get: its answer for {host} is not what a helper answers"
        ) from None
    return Credentials(username="" if name == TOKEN_NAME else name, secret=secret)


async def _told(helper: str, verb: str, said: bytes, host: str) -> bytes:
    """Run a helper; what it answers. NotFound where it knows nothing of the host."""
    words = [f"docker-credential-{helper}", verb]
    what = " ".join(words)
    try:
        # In our session: it may ask its user on the terminal. Its stderr is not ours to show, as
        # there is no telling what it holds.
        process = await trio.lowlevel.open_process(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise FailedPrecondition(
            f"{what}: {error.strerror}: install the helper, or name another in Docker's config.json"
        ) from error
    try:
        with trio.fail_after(HELPER_WITHIN_S):
            answer = await _exchange(process, said)
            status = await process.wait()
    except trio.TooSlowError:
        raise DeadlineExceeded(f"{what}: no end within {HELPER_WITHIN_S:g} s") from None
    finally:
        await _ended(process)
    if len(answer) > HELPER_BYTES_MAX:
        raise ResourceExhausted(f"{what}: more than {HELPER_BYTES_MAX} bytes of answer")
    if status and _UNKNOWN_TO_HELPER in answer:
        raise NotFound(f"{what}: nothing is kept for {host}: not found")
    if status:
        raise FailedPrecondition(
            f"{what}: it failed for {host} with status {status}: run it by hand to see why"
        )
    return answer


async def _exchange(process: trio.Process, said: bytes) -> bytes:
    """Give a process its input, and gather what it says up to a bound."""
    source, sink = process.stdout, process.stdin
    assert source is not None
    assert sink is not None
    answer = bytearray()
    try:
        await sink.send_all(said)
    except trio.BrokenResourceError:
        pass  # it has no use for it
    await sink.aclose()
    async for piece in source:
        answer += piece
        if len(answer) > HELPER_BYTES_MAX:
            process.kill()
            break
    return bytes(answer)


async def _ended(process: trio.Process) -> None:
    """The process is gone, whatever it was at."""
    if process.poll() is None:
        process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()
