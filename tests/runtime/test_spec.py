"""The spec that Holdfast composes holds containerd's defaults and the caller's wishes."""

import json
from typing import Any

import pytest

from holdfast.actors.errors import InvalidArgument
from holdfast.runtime.spec import (
    CAPABILITIES,
    BindMount,
    Rlimit,
    User,
    Wishes,
    cgroups_path,
    image_args,
    make_spec,
    merge_env,
    spec_bytes,
)


def spec(**wishes: Any) -> Any:
    return make_spec("default", "web", Wishes(**{"args": ["/bin/sh"], **wishes}))


def test_the_default_spec_is_containerds() -> None:
    made = spec()
    assert made["process"]["noNewPrivileges"] is True
    assert made["process"]["capabilities"]["bounding"] == list(CAPABILITIES)
    assert "inheritable" not in made["process"]["capabilities"]
    assert "ambient" not in made["process"]["capabilities"]
    assert made["linux"]["cgroupsPath"] == "/default/web" == cgroups_path("default", "web")
    assert [n["type"] for n in made["linux"]["namespaces"]] == [
        "pid",
        "ipc",
        "uts",
        "mount",
        "network",
    ]
    assert made["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert "/proc/kcore" in made["linux"]["maskedPaths"]
    assert "/proc/sys" in made["linux"]["readonlyPaths"]
    assert made["hostname"] == "web"
    assert made["root"] == {"path": "rootfs", "readonly": False}


def test_limits_reach_the_resources() -> None:
    made = spec(memory_limit_bytes=64 << 20, cpus=1.5, cpu_shares=512, pids_limit=32)
    assert made["linux"]["resources"]["memory"] == {"limit": 64 << 20}
    assert made["linux"]["resources"]["cpu"] == {
        "quota": 150_000,
        "period": 100_000,
        "shares": 512,
    }
    assert made["linux"]["resources"]["pids"] == {"limit": 32}


def test_a_terminal_names_its_kind_once() -> None:
    assert spec(terminal=True)["process"]["env"] == ["TERM=xterm"]
    assert spec(terminal=True, env=["TERM=vt100"])["process"]["env"] == ["TERM=vt100"]


def test_the_user_and_its_groups_are_numbers() -> None:
    user = spec(user=User(uid=1, gid=2, groups=[3]))["process"]["user"]
    assert user == {"uid": 1, "gid": 2, "additionalGids": [3]}


def test_host_network_binds_the_hosts_sys() -> None:
    made = spec(host_network=True)
    assert "network" not in [n["type"] for n in made["linux"]["namespaces"]]
    sys = next(m for m in made["mounts"] if m["destination"] == "/sys")
    assert sys["type"] == "bind"


def test_a_named_network_namespace_is_joined() -> None:
    made = spec(network_namespace="/run/netns/blue")
    assert {"type": "network", "path": "/run/netns/blue"} in made["linux"]["namespaces"]


def test_wished_mounts_follow_the_kernels() -> None:
    made = spec(
        binds=[
            BindMount(source="/a", target="/b"),
            BindMount(source="/c", target="/d", read_only=True),
        ],
        tmpfs=["/tmp"],
    )
    assert [m["destination"] for m in made["mounts"][-3:]] == ["/b", "/d", "/tmp"]
    assert "ro" in made["mounts"][-2]["options"]


def test_rlimits_are_written_as_asked() -> None:
    made = spec(rlimits=[Rlimit(kind="RLIMIT_NPROC", soft=1, hard=2)])
    assert made["process"]["rlimits"] == [{"type": "RLIMIT_NPROC", "soft": 1, "hard": 2}]


@pytest.mark.parametrize(
    "wishes",
    [
        {"args": []},
        {"cwd": "here"},
        {"host_network": True, "network_namespace": "/run/netns/a"},
        {"tmpfs": ["tmp"]},
        {"binds": [BindMount(source="/a", target="b")]},
        {"memory_limit_bytes": 0},
        {"cpus": 0.0},
    ],
)
def test_contradictory_wishes_are_refused(wishes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        spec(**wishes)


def test_the_callers_command_replaces_the_images() -> None:
    assert image_args(["/init"], ["serve"], []) == ["/init", "serve"]
    assert image_args(["/init"], ["serve"], ["help"]) == ["/init", "help"]
    with pytest.raises(InvalidArgument):
        image_args([], [], [])


def test_the_callers_environment_wins() -> None:
    merged = merge_env(["PATH=/bin", "A=1", "B=2"], ["A=3", "B"])
    assert merged == ["PATH=/bin", "A=3"]


def test_the_spec_is_json() -> None:
    made = spec()
    assert json.loads(spec_bytes(made)) == made
