"""Namespaces."""

import uuid

import pytest
from bench.daemons import Daemon
from driver import Ctr, Pair

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_a_namespace_is_created_labelled_listed_and_removed(ctr: Ctr) -> None:
    name = "ns-" + uuid.uuid4().hex[:8]
    ctr.run("namespaces", "create", name, "colour=blue")
    assert [name, "colour=blue"] in ctr.table("namespaces", "ls")
    ctr.run("namespaces", "label", name, "colour=red")
    assert [name, "colour=red"] in ctr.table("namespaces", "ls")
    assert ctr.run("namespaces", "rm", name) == f"{name}\n"
    assert name not in ctr.run("namespaces", "ls", "-q").split()


def test_a_namespace_is_not_created_twice(ctr: Ctr) -> None:
    name = "ns-" + uuid.uuid4().hex[:8]
    ctr.run("namespaces", "create", name)
    assert f'namespace "{name}": already exists' in ctr.refused("namespaces", "create", name)
    ctr.run("namespaces", "rm", name)


def test_a_namespace_that_holds_something_is_not_removed(fresh: Ctr, daemon: Daemon) -> None:
    fresh.run("images", "import", "--no-unpack", str(daemon.base / "busybox.tar"))
    said = fresh.refused("namespaces", "rm", fresh.words[-1])
    assert "must be empty, but it still has" in said
    assert "images" in said


def test_removing_an_unknown_namespace_is_no_error(ctr: Ctr) -> None:
    assert ctr.run("namespaces", "rm", "never-was") == "never-was\n"


def test_what_namespaces_prints_is_what_containerd_prints(pair: Pair) -> None:
    name = "ns-" + uuid.uuid4().hex[:8]
    pair.same("namespaces", "create", name, "a=b")
    pair.same("namespaces", "create", name, code=1)
    pair.same("namespaces", "label", name, "a=", "c=d")
    for ctr in pair:
        assert [name, "c=d"] in ctr.table("namespaces", "ls")
    assert pair.same("namespaces", "rm", "--cgroup", name) == f"{name}\n"
    pair.same("namespaces", "create", "not/a/name", code=1)
