"""What an activation will do is known before anything is touched."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument, Unimplemented
from holdfast.storage.mountplan import (
    Directory,
    Filesystem,
    Plan,
    make_plan,
    parse_size,
    split_type,
)
from holdfast.storage.mounts import Mount

HOME = Path("/run/mounts/1")


def plan(*mounts: Mount, temporary: bool = False) -> Plan:
    return make_plan(mounts, HOME, temporary)


def refused(*mounts: Mount, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        plan(*mounts)


LOOP = Mount(type="loop", source="/data/disk")


def test_what_needs_no_manager_is_left_to_the_client() -> None:
    for mounts in ([], [Mount(type="bind", source="/a")], [Mount(type="unknown/ext4", source="")]):
        with pytest.raises(Unimplemented):
            make_plan(mounts, HOME, False)
    with pytest.raises(Unimplemented):
        make_plan([], HOME, True)


def test_a_handler_makes_its_mount_active_and_leaves_the_rest() -> None:
    ext4 = Mount(type="format/ext4", source="{{ mount 0 }}", options=("ro",))
    bind = Mount(type="bind", source="/b")
    made = plan(LOOP, ext4, bind)
    assert [(step.mount, step.point) for step in made.steps] == [(LOOP, f"{HOME}/1")]
    assert made.system == [Mount(type="ext4", source=f"{HOME}/1", options=("ro",)), bind]
    assert plan(bind, LOOP).system == []
    assert [step.point for step in plan(bind, LOOP).steps] == [f"{HOME}/2", f"{HOME}/1"]


def test_a_temporary_activation_makes_all_and_leaves_a_bind() -> None:
    made = plan(LOOP, Mount(type="format/ext4", source="{{mount 0}}"), temporary=True)
    assert [step.mount.type for step in made.steps] == ["loop", "ext4"]
    assert made.steps[1].mount.source == f"{HOME}/2"
    assert made.system == [Mount(type="bind", source=f"{HOME}/1", options=("rbind",))]


def test_braces_are_filled_from_the_mounts_before() -> None:
    lowers = [Mount(type="loop", source=f"/{name}", target="t") for name in "abc"]
    (overlay,) = plan(
        *lowers,
        Mount(
            type="format/overlay",
            source="{{source 1}}",
            target="{{target 2}}",
            options=("lowerdir={{ overlay 2 0 }}", "x={{overlay 0 1}}:{{ mount 2 }}", "plain"),
        ),
    ).system
    assert (overlay.source, overlay.target) == ("/b", "t")
    assert overlay.options == (
        f"lowerdir={HOME}/1:{HOME}/2:{HOME}/3",
        f"x={HOME}/3:{HOME}/2:{HOME}/1",
        "plain",
    )


@pytest.mark.parametrize(
    "text",
    [
        "{{ mount 1 }}", "{{ mount -1 }}", "{{ mount }}", "{{ mount x }}", "{{ nonsense 0 }}",
        "{{ overlay 0 1 }}", "{{ overlay 0 }}", "{{ mount 0", "{{}}", "a }} {{",
    ],
)  # fmt: skip
def test_braces_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        plan(LOOP, Mount(type="format/ext4", source=text))


def test_transforms_are_carried_out_in_their_order() -> None:
    options = (
        "X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
        "X-containerd.mkdir.path={{ mount 0 }}/work:755:1000:1001",
        "upperdir={{ mount 0 }}/upper",
    )
    made = plan(LOOP, Mount(type="format/mkdir/overlay", source="overlay", options=options))
    assert made.makings == [
        Directory(path=f"{HOME}/1/upper", mode=0o755),
        Directory(path=f"{HOME}/1/work", mode=0o755, uid=1000, gid=1001),
    ]
    assert made.system == [
        Mount(type="overlay", source="overlay", options=(f"upperdir={HOME}/1/upper",))
    ]
    # The other way round the directory's name is not filled in.
    (making,) = plan(
        LOOP, Mount(type="mkdir/format/overlay", source="", options=options[:1])
    ).makings
    assert making == Directory(path="{{ mount 0 }}/upper", mode=0o755)


def test_a_filesystem_is_made_before_its_mount() -> None:
    options = ("X-containerd.mkfs.size=16MiB", "X-containerd.mkfs.fs=ext2", "ro")
    made = plan(Mount(type="mkfs/loop", source="/data/disk", options=options))
    assert made.steps[0].makings == [
        Filesystem(path="/data/disk", size_bytes=16 << 20, kind="ext2")
    ]
    assert made.steps[0].mount == Mount(type="loop", source="/data/disk", options=("ro",))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("X-containerd.mkfs.fs=ext4", "requires"),
        ("X-containerd.mkfs.size=big", "bad option size"),
        ("X-containerd.mkfs.size=9999999P", "bad option size"),
        ("X-containerd.mkfs.colour=red", "unknown mount option colour"),
    ],
)
def test_a_filesystem_that_cannot_be_is_refused(option: str, words: str) -> None:
    refused(Mount(type="mkfs/loop", source="/d", options=(option,)), words=words)
    for more, said in [("fs=zfs", "unsupported"), ("uuid=1", "uuid")]:
        both = ("X-containerd.mkfs.size=1M", f"X-containerd.mkfs.{more}")
        refused(Mount(type="mkfs/loop", source="/d", options=both), words=said)


@pytest.mark.parametrize(
    "value",
    [
        "mode=1", "path=/a:9", "path=/a:7777", "path=/a:755:1", "path=/a:755:-1:0",
        "path=/a:755:x:0", "path=/a:1:1:1:1",
    ],
)  # fmt: skip
def test_a_directory_that_cannot_be_is_refused(value: str) -> None:
    mount = Mount(type="mkdir/overlay", source="", options=(f"X-containerd.mkdir.{value}",))
    refused(mount, words="invalid mkdir option")


def test_a_nul_byte_is_refused() -> None:
    for mount in (
        Mount(type="loop", source="a\0b"),
        Mount(type="lo\0op", source=""),
        Mount(type="loop", source="", target="\0"),
        Mount(type="loop", source="", options=("\0",)),
    ):
        refused(mount, words="NUL")


def test_too_many_mounts_are_refused() -> None:
    refused(*[LOOP] * 256, words="too many mounts")
    assert len(plan(*[LOOP] * 255).steps) == 255


def test_sizes() -> None:
    told = {"7": 7, "1k": 1024, "1.5M": 3 << 19, "2GiB": 2 << 30, "1 tb": 1 << 40, "3B": 3}
    assert {text: parse_size(text) for text in told} == told


@given(st.text(alphabet="formatkdis/{} 01", max_size=30), st.text(max_size=20))
def test_any_mount_gives_a_plan_or_a_refusal(kind: str, source: str) -> None:
    try:
        made = plan(LOOP, Mount(type=kind, source=source, options=(source,)))
    except InvalidArgument:
        return
    assert len(made.steps) + len(made.system) == 2
    assert [m for m in (made.steps[0].mount, *made.system) if split_type(m.type)[0]] == []
