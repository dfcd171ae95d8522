"""Trees: hostile ones are removed, measured and copied without being left."""

import os
import stat
from collections.abc import Container
from pathlib import Path

import pytest

from holdfast.storage import trees
from holdfast.storage.trees import copy_tree, measure_tree, remove_tree


def remove(path: Path, kept: Container[object] = ()) -> bool:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        return remove_tree(fd, os.fsencode(path.name), kept)
    finally:
        os.close(fd)


def make_deep(path: Path, depth: int) -> None:
    """Deeper than a path may be long, and than Python's stack."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("dddddddd", dir_fd=fd)
        below = os.open("dddddddd", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_deep_tree_is_measured_copied_and_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 1500)
    (tmp_path / "copy").mkdir()
    assert measure_tree(str(tmp_path / "deep"))[0] == 1501
    copy_tree(str(tmp_path / "deep"), str(tmp_path / "copy"))
    assert measure_tree(str(tmp_path / "copy"))[0] == 1501
    assert remove(tmp_path / "deep")
    assert remove(tmp_path / "copy")
    assert os.listdir(tmp_path) == []


def test_removal_does_not_follow_symlinks(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("x")
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/link").symlink_to("../outside")
    (tmp_path / "tree/sub/up").symlink_to("..")
    (tmp_path / "tree/sub/file").write_text("x")
    assert remove(tmp_path / "tree")
    assert (tmp_path / "outside/file").exists()
    assert remove(tmp_path / "tree")
    (tmp_path / "file").write_text("x")
    assert remove(tmp_path / "file")


def test_what_is_kept_stays_with_its_directories(tmp_path: Path) -> None:
    for name in ("a/keep/x", "a/keep/y", "a/go/z", "a/keep2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    inner, outer = ((tmp_path / name).stat().st_ino for name in ("a/keep", "a"))
    kept = {(inner, b"x"), (outer, b"keep2")}
    assert not remove(tmp_path / "a", kept)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"a", "a/keep", "a/keep/x", "a/keep2"}
    assert not remove(tmp_path / "a", {(tmp_path.stat().st_ino, b"a")})
    assert os.listdir(tmp_path / "a") == []


@pytest.mark.parametrize("walk", ["remove", "measure"])
def test_a_directory_moved_under_the_walk_does_not_lead_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walk: str
) -> None:
    (tmp_path / "top/tree/a/b").mkdir(parents=True)
    (tmp_path / "top/precious").write_text("x")
    listdir = os.listdir
    moved = False

    def move_then_list(fd: int) -> list[str]:
        nonlocal moved
        names = listdir(fd)
        if not moved and os.readlink(f"/proc/self/fd/{fd}").endswith("/a/b"):
            moved = True
            (tmp_path / "top/tree/a/b").rename(tmp_path / "elsewhere")
        return names

    monkeypatch.setattr(trees.os, "listdir", move_then_list)
    walks = {"remove": remove, "measure": lambda path: measure_tree(str(path))}
    with pytest.raises(BlockingIOError):
        walks[walk](tmp_path / "top/tree")
    monkeypatch.undo()
    assert (tmp_path / "top/precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices need root")
def test_a_copy_keeps_everything(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "dir").mkdir(parents=True)
    (source / "dir/file").write_bytes(b"x" * 100_000)
    (source / "dir/empty").touch()
    os.link(source / "dir/file", source / "hard")
    os.chown(source / "hard", 4, 5)
    (source / "hard").chmod(0o6751)
    os.setxattr(source / "hard", "user.note", b"n")
    (source / "link").symlink_to("dir")
    os.chown(source / "link", 6, 7, follow_symlinks=False)
    os.mkfifo(source / "fifo", 0o622)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with (source / "holes").open("wb") as out:
        out.seek(5_000_000)
        out.write(b"middle")
        out.truncate(10_000_000)
    os.utime(source / "dir", ns=(5, 6))
    source.chmod(0o701)
    target.mkdir()
    copy_tree(str(source), str(target))
    for name in ("", "dir", "dir/file", "dir/empty", "hard", "link", "fifo", "null", "holes"):
        a, b = (source / name).lstat(), (target / name).lstat()
        fields = ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_rdev")
        assert [getattr(a, f) for f in fields] == [getattr(b, f) for f in fields], name
    assert (target / "hard").stat().st_ino == (target / "dir/file").stat().st_ino
    assert os.getxattr(target / "hard", "user.note") == b"n"
    assert (target / "holes").read_bytes() == (source / "holes").read_bytes()
    assert (target / "holes").stat().st_blocks <= (source / "holes").stat().st_blocks
