"""A file that a caller lends is read where it lies, and only if it is that file."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from holdfast.api.grpc.call import Context, Peer
from holdfast.api.services.archives import LENT_FILE, lend, lent


def call(metadata: Mapping[str, str], pid: int | None = None) -> Context:
    peer = Peer(pid=os.getpid() if pid is None else pid, uid=0, gid=0)
    return Context("m", dict(metadata), peer=peer)


def test_a_plain_file_is_lent_from_its_beginning(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"0123456789")
    with (tmp_path / "archive").open("rb", buffering=0) as ours:
        ours.seek(5)
        told = lend(ours.fileno())
        # What is read is the file, whatever has its name by now.
        (tmp_path / "archive").rename(tmp_path / "elsewhere")
        with lent(call(told)) as theirs:
            assert theirs is not None
            assert theirs.read() == b"0123456789"
        assert theirs.closed
        assert ours.read() == b"56789"


def test_what_is_no_plain_file_is_not_lent(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, Path("/dev/null"), tmp_path / "fifo"):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert lend(fd) == {}
            status = os.fstat(fd)
            with lent(call({LENT_FILE: f"{fd}:{status.st_dev}:{status.st_ino}"})) as file:
                assert file is None
        finally:
            os.close(fd)


@pytest.mark.parametrize("told", ["", "1", "a:b:c", "-1:2:3", "1:2:3:4", "9999:1:1"])
def test_what_makes_no_sense_is_not_read(told: str) -> None:
    with lent(call({LENT_FILE: told} if told else {})) as file:
        assert file is None


def test_another_file_or_process_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"x")
    with (tmp_path / "archive").open("rb") as ours:
        told = lend(ours.fileno())
        fd, device, inode = told[LENT_FILE].split(":")
        with lent(call({LENT_FILE: f"{fd}:{device}:{int(inode) + 1}"})) as file:
            assert file is None
        with lent(call(told, pid=0)) as file:
            assert file is None
