"""Mounts: their words, and the calls, with nothing left behind."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import FailedPrecondition, InvalidArgument, Unimplemented
from holdfast.storage import syscalls
from holdfast.storage.mounts import (
    Mount,
    detached,
    escape_path,
    mount_all,
    overlay_layers,
    parse_options,
    unmount_all,
)

sys.path.insert(0, str(Path(__file__).parent))
from check_snapshotter import mounts_below


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Path]:
    """A mountpoint that is clean afterwards, come what may."""
    target = tmp_path / "at"
    target.mkdir()
    yield target
    unmount_all(str(target))
    assert mounts_below(tmp_path) == []


def test_words_are_sorted_and_later_ones_win() -> None:
    options = parse_options(["ro", "rbind", "rw", "nosuid", "rprivate", "size=1m", "X-note", ""])
    assert options.flags == syscalls.MS_BIND | syscalls.MS_REC | syscalls.MS_NOSUID
    assert options.propagation == (syscalls.MS_PRIVATE | syscalls.MS_REC,)
    assert options.data == ("size=1m",)
    with pytest.raises(Unimplemented):
        parse_options(["loop"])
    with pytest.raises(InvalidArgument):
        parse_options(["a\0b"])


def test_a_mount_is_the_same_after_a_frame() -> None:
    mount = Mount(type="overlay", source="overlay", options=("lowerdir=/a:/b", "upperdir=/u"))
    assert Mount.from_record(mount.to_record()) == mount
    assert overlay_layers(mount) == ("/u", ["/a", "/b"])


@given(st.lists(st.text("a/\\,:", min_size=1), min_size=1))
def test_an_overlays_paths_come_back_as_they_were(paths: list[str]) -> None:
    lower = "lowerdir=" + ":".join(map(escape_path, paths))
    options = (f"upperdir={escape_path(paths[0])}", lower)
    assert overlay_layers(Mount(type="overlay", source="overlay", options=options)) == (
        paths[0],
        paths,
    )


@pytest.mark.root
def test_a_read_only_bind_cannot_be_written(tmp_path: Path, at: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("x")
    mount = Mount(type="bind", source=str(tmp_path / "a"), options=("rbind", "ro", "rprivate"))
    mount_all([mount], str(at))
    assert (at / "file").read_text() == "x"
    with pytest.raises(OSError, match="Read-only"):
        (at / "file").write_text("y")


@pytest.mark.root
def test_when_one_fails_those_before_it_are_taken_off(tmp_path: Path, at: Path) -> None:
    good = Mount(type="tmpfs", source="tmpfs", options=("size=64k", "nodev"))
    bad = Mount(type="bind", source=str(tmp_path / "none"), options=("bind",))
    with pytest.raises(FileNotFoundError):
        mount_all([good, bad], str(at))
    assert mounts_below(tmp_path) == []
    with pytest.raises(OSError, match="No such device"):
        mount_all([Mount(type="nonsense", source="x")], str(at))


@pytest.mark.root
def test_mounts_stack_and_have_targets(tmp_path: Path, at: Path) -> None:
    inner = Mount(type="tmpfs", source="tmpfs", target="/inner")
    (tmp_path / "a/inner").mkdir(parents=True)
    mount_all([Mount(type="bind", source=str(tmp_path / "a"), options=("bind",)), inner], str(at))
    assert len(mounts_below(tmp_path)) == 2
    with pytest.raises(InvalidArgument, match="leaves its root"):
        mount_all([Mount(type="tmpfs", source="tmpfs", target="../x")], str(at))


@pytest.mark.root
def test_lower_directories_beyond_a_page_are_mounted(tmp_path: Path, at: Path) -> None:
    lowers = [tmp_path / f"{'lower' * 8}-{number}" for number in range(100)]
    for number, lower in enumerate(lowers):
        lower.mkdir()
        (lower / str(number)).touch()
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    options = (
        "index=off",
        "nodev",
        f"workdir={tmp_path}/work",
        f"upperdir={tmp_path}/upper",
        "lowerdir=" + ":".join(map(str, lowers)),
    )
    mount = Mount(type="overlay", source="overlay", options=options)
    mount_all([mount], str(at))
    assert len(os.listdir(at)) == 100
    unmount_all(str(at))
    with detached([mount]) as fd:
        assert len(os.listdir(fd)) == 100
    flagged = Mount(type="tmpfs", source="none", options=("noswap", "ro"))
    with detached([flagged]) as fd, pytest.raises(OSError, match="Read-only"):
        os.mkdir("x", dir_fd=fd)


@pytest.mark.root
def test_what_is_looked_into_is_attached_nowhere(tmp_path: Path) -> None:
    with detached([Mount(type="tmpfs", source="tmpfs", options=("size=64k",))]) as fd:
        os.mkdir("x", dir_fd=fd)
        assert os.listdir(fd) == ["x"]
        assert mounts_below(tmp_path) == []
    with pytest.raises(FailedPrecondition):
        with detached([]):
            pass


@pytest.mark.root
def test_unmounting_nothing_is_no_error(tmp_path: Path) -> None:
    unmount_all(str(tmp_path))
    unmount_all(str(tmp_path / "none"))


@pytest.mark.root
def test_the_plain_calls(tmp_path: Path) -> None:
    fd = syscalls.open_tree(syscalls.AT_FDCWD, tmp_path, syscalls.OPEN_TREE_CLONE)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        syscalls.open_tree(syscalls.AT_FDCWD, tmp_path / "none", 0)
    with pytest.raises(OSError, match="Invalid argument"):
        syscalls.unshare(-1 & 0x7FFFFFFF)
    with pytest.raises(OSError, match=r"Bad file|Invalid"):
        syscalls.setns(-1, syscalls.CLONE_NEWNS)
