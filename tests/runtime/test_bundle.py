"""Bundles are private, whole, and removed without touching anything that is not theirs."""

import stat
import subprocess
from pathlib import Path

import pytest

from holdfast.actors.errors import FailedPrecondition, InvalidArgument
from holdfast.runtime.bundle import (
    BundleName,
    bundle_path,
    bundles,
    cgroups_path,
    leftovers,
    make_bundle,
    remove_bundle,
)

CONFIG = b'{"linux": {"cgroupsPath": "/default/web"}}'


def test_a_bundle_is_for_us_alone(tmp_path: Path) -> None:
    path = bundle_path(tmp_path, "default", "web")
    make_bundle(path, CONFIG)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "config.json").stat().st_mode) == 0o600
    assert (path / "config.json").read_bytes() == CONFIG
    assert (path / "rootfs").is_dir()


def test_a_removed_bundle_leaves_nothing(tmp_path: Path) -> None:
    path = bundle_path(tmp_path, "default", "web")
    make_bundle(path, CONFIG)
    (path / "exits").mkdir()
    (path / "exits" / "init.cbor").write_bytes(b"")
    (path / "link").symlink_to("/etc/passwd")
    remove_bundle(path)
    assert not path.exists()
    remove_bundle(path)


def test_a_leftover_is_replaced(tmp_path: Path) -> None:
    path = bundle_path(tmp_path, "default", "web")
    make_bundle(path, b"{}")
    (path / "shim.sock").write_bytes(b"")
    make_bundle(path, CONFIG)
    assert (path / "config.json").read_bytes() == CONFIG
    assert not (path / "shim.sock").exists()


def test_files_in_rootfs_are_not_deleted(tmp_path: Path) -> None:
    path = bundle_path(tmp_path, "default", "web")
    make_bundle(path, CONFIG)
    (path / "rootfs" / "precious").write_text("mine")
    with pytest.raises(FailedPrecondition, match="rootfs is not empty"):
        remove_bundle(path)
    assert (path / "rootfs" / "precious").read_text() == "mine"


@pytest.mark.root
def test_a_mount_on_rootfs_is_detached_and_its_files_stay(tmp_path: Path) -> None:
    path = bundle_path(tmp_path, "default", "web")
    make_bundle(path, CONFIG)
    source = tmp_path / "source"
    source.mkdir()
    (source / "precious").write_text("mine")
    subprocess.run(["mount", "--bind", source, path / "rootfs"], check=True)
    remove_bundle(path)
    assert not path.exists()
    assert (source / "precious").read_text() == "mine"


@pytest.mark.root
def test_another_file_system_in_a_bundle_is_not_entered(tmp_path: Path) -> None:
    path = bundle_path(tmp_path, "default", "web")
    make_bundle(path, CONFIG)
    (path / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path / "other"], check=True)
    try:
        with pytest.raises(FailedPrecondition, match="another file system"):
            remove_bundle(path)
    finally:
        subprocess.run(["umount", path / "other"], check=True)


def test_bundles_without_a_record_are_leftovers(tmp_path: Path) -> None:
    assert list(bundles(tmp_path)) == []
    web = BundleName(namespace="default", id="web")
    old = BundleName(namespace="k8s.io", id="old")
    for name in (web, old):
        make_bundle(bundle_path(tmp_path, name.namespace, name.id), CONFIG)
    assert list(bundles(tmp_path)) == [web, old]
    assert leftovers(tmp_path, [web]) == [old]


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a\0b"])
def test_an_identifier_never_leaves_the_state_directory(tmp_path: Path, id: str) -> None:
    with pytest.raises(InvalidArgument):
        bundle_path(tmp_path, "default", id)


def test_the_cgroup_path_is_the_specs() -> None:
    assert cgroups_path(CONFIG) == "/default/web"
    assert cgroups_path(b"{}") == ""
    assert cgroups_path(b'{"linux": null}') == ""
    for broken in (b"[]", b"{"):
        with pytest.raises(InvalidArgument):
            cgroups_path(broken)
