"""The specs of sandboxes, and the program that they run."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from holdfast.actors.errors import FailedPrecondition, InvalidArgument
from holdfast.runtime.pause import pause_root, program
from holdfast.runtime.sandboxspec import join_sandbox, needs_root, sandbox_spec


def spec(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(sandbox_spec("ns", "pod_", given, "/pause-root", **more))
    return made


def kinds(made: dict[str, Any]) -> list[str]:
    return [each["type"] for each in made["linux"]["namespaces"]]


def test_what_nothing_says_is_filled_in() -> None:
    made = spec({})
    assert kinds(made) == ["network", "ipc", "uts", "mount"]
    assert made["process"]["args"] == ["/pause"]
    assert made["root"] == {"path": "/pause-root", "readonly": True}
    assert made["linux"]["cgroupsPath"] == "/ns/pod_"


def test_what_is_said_stays() -> None:
    given = {
        "hostname": "pod",
        "process": {"args": ["sleep", "1"], "cwd": "/tmp", "user": {"uid": 7, "gid": 7}},
        "root": {"path": "/own", "readonly": False},
        "mounts": [{"destination": "/x"}],
        "annotations": {"a": "b"},
        "linux": {
            "cgroupsPath": "/mine",
            "namespaces": [{"type": "pid"}, {"type": "network"}],
            "sysctl": {"net.x": "1"},
        },
    }
    made = spec(given, netns_path="/run/netns/x", annotations={"c": "d"})
    for key in ("hostname", "process", "root", "mounts"):
        assert made[key] == given[key]
    assert made["annotations"] == {"a": "b", "c": "d"}
    assert made["linux"]["namespaces"] == [
        {"type": "pid"},
        {"type": "network", "path": "/run/netns/x"},
        {"type": "mount"},
    ]
    assert (made["linux"]["cgroupsPath"], made["linux"]["sysctl"]) == ("/mine", {"net.x": "1"})


def test_a_process_needs_a_root_filesystem() -> None:
    assert needs_root({})
    assert needs_root({"process": {"cwd": "/"}})
    assert not needs_root({"root": {"path": "/own"}, "process": {"args": ["x"]}})
    with pytest.raises(InvalidArgument):
        needs_root({"process": {"args": ["x"]}})
    with pytest.raises(InvalidArgument):
        needs_root({"process": "x"})


def test_a_container_joins_what_its_sandbox_has_of_its_own(tmp_path: Path) -> None:
    for pid, own in (("self", ""), ("7", "own")):
        folder = tmp_path / pid / "ns"
        folder.mkdir(parents=True)
        for name in ("net", "ipc", "uts", "pid"):
            (folder / name).symlink_to(f"{name}:[{own if name in ('net', 'uts') else ''}]")
    config = {
        "hostname": "box",
        "root": {"path": "rootfs"},
        "linux": {
            "namespaces": [
                {"type": "network"}, {"type": "uts"}, {"type": "ipc"}, {"type": "pid"},
                {"type": "mount"},
            ],
            "maskedPaths": [],
        },
    }  # fmt: skip
    made = json.loads(join_sandbox(config, 7, tmp_path))
    assert made["linux"]["namespaces"] == [
        {"type": "network", "path": f"{tmp_path}/7/ns/net"},
        {"type": "uts", "path": f"{tmp_path}/7/ns/uts"},
        {"type": "ipc"},
        {"type": "pid"},
        {"type": "mount"},
    ]
    assert (made["root"], "hostname" in made) == ({"path": "rootfs"}, False)
    config["linux"] = {"namespaces": [{"type": "network", "path": "/own"}]}
    assert json.loads(join_sandbox(config, 7, tmp_path)) == config
    with pytest.raises(FailedPrecondition):
        join_sandbox(config, 8, tmp_path)
    for linux in ([], {"namespaces": 1}, {"namespaces": ["x"]}):
        with pytest.raises(InvalidArgument):
            join_sandbox({"linux": linux}, 7, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_pause_program_waits_and_leaves_when_told(number: int, tmp_path: Path) -> None:
    root = pause_root(tmp_path)
    assert pause_root(tmp_path) == root  # and is not written again
    assert (root / "pause").read_bytes() == program()
    process = subprocess.Popen([root / "pause"])
    try:
        time.sleep(0.05)
        process.send_signal(signal.SIGCHLD)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.send_signal(number)
        assert process.wait(5) == 0
    finally:
        process.kill()


@pytest.mark.root
def test_the_pause_program_leaves_no_zombie_as_first_process(tmp_path: Path) -> None:
    pause = pause_root(tmp_path) / "pause"
    command = ["unshare", "--pid", "--fork", "--mount-proc", str(pause)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 5
        first = ""
        while not first and time.monotonic() < deadline:
            path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            found = path.read_text().split()
            if found and Path(f"/proc/{found[0]}/comm").read_text() == "pause\n":
                first = found[0]
        # An orphan of the namespace, which ends at once.
        subprocess.run(
            ["nsenter", "-t", first, "-p", "-m", "sh", "-c", "(sleep 0.2 &)"], check=True
        )
        time.sleep(0.5)
        assert Path(f"/proc/{first}/task/{first}/children").read_text() == ""
        os.kill(int(first), signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
