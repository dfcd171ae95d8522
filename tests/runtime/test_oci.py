"""The OCI runtime's command lines and words."""

import os
from pathlib import Path

import pytest

from holdfast.actors.errors import InvalidArgument, NotFound
from holdfast.runtime import oci, procfs, syscalls

RUNTIME = oci.Runtime(program="/usr/bin/crun", name="crun", root="/r")


def test_command_lines() -> None:
    runtime = oci.Runtime(
        program="/usr/bin/crun",
        name="crun",
        root="/r",
        systemd_cgroup=True,
        no_pivot_root=True,
        no_new_keyring=True,
    )
    common = ["crun", "--root", "/r", "--log", "/l", "--log-format", "json", "--systemd-cgroup"]
    assert runtime.create("id", "/b", "/p", "/c", "/l") == [
        *common,
        *("create", "--bundle", "/b", "--pid-file", "/p", "--console-socket", "/c"),
        *("--no-pivot", "--no-new-keyring", "id"),
    ]
    assert RUNTIME.exec("id", "/s", "/p", "", "/l")[7:] == [
        *("exec", "--pid-file", "/p", "--process", "/s", "id"),
    ]


def test_the_runtime_is_found_by_name_by_path_or_by_preference(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert oci.find_program(str(own)) == str(own)
    assert os.path.basename(oci.find_program("")) in oci.PREFERRED
    with pytest.raises(NotFound, match="no-such"):
        oci.find_program("no-such")


@pytest.mark.parametrize(
    ("log", "status", "text"),
    [
        ('{"msg":"first","level":"warning"}\n{"msg":"why","level":"error"}\nrubbish\n', 256, "why"),
        ("", 256, "exit status 1"),
        (None, 9, "killed by signal 9"),
    ],
)
def test_a_failure_is_told_in_the_runtime_s_words(tmp_path: Path, log, status, text) -> None:
    path = tmp_path / "log"
    if log is not None:
        path.write_text(log)
    assert oci.failure(str(path), status) == text


def test_only_crun_s_state_is_handled_by_us(tmp_path: Path) -> None:
    runtime = oci.Runtime(program="/x", name="x", root=str(tmp_path))
    state = tmp_path / "id"
    state.mkdir()
    assert runtime.exec_fifo("id") is None
    assert not runtime.can_be_removed_by_us("id", {})
    (state / "status").write_text("")
    (state / "exec.fifo").write_text("")
    assert runtime.exec_fifo("id") == str(state / "exec.fifo")
    assert runtime.can_be_removed_by_us("id", {"hooks": None})
    assert not runtime.can_be_removed_by_us("id", {"hooks": {"poststop": [{"path": "/x"}]}})


def test_what_is_no_object_is_refused() -> None:
    for text in (b"{", b"[]"):
        with pytest.raises(InvalidArgument, match="spec"):
            oci.parse(text, "spec")


def test_the_pid_namespace_is_the_container_s_own_only_without_a_path() -> None:
    def config(**namespace: str) -> dict[str, object]:
        return {"linux": {"namespaces": [namespace]}}

    assert oci.has_pid_namespace(config(type="pid"))
    assert not oci.has_pid_namespace(config(type="pid", path="/proc/1/ns/pid"))
    assert not oci.has_pid_namespace({})


@pytest.mark.parametrize(
    ("allowed", "wanted", "after"),
    [(True, -500, -500), (False, -500, 0), (False, 10, 10), (False, None, None)],
)
def test_an_oom_score_below_ours_is_raised(monkeypatch, allowed, wanted, after) -> None:
    monkeypatch.setattr(procfs, "has_capability", lambda number: allowed)
    monkeypatch.setattr(Path, "read_text", lambda path: "0\n")
    process = {} if wanted is None else {"oomScoreAdj": wanted}
    assert oci.clamp_oom_score(process) == (wanted != after)
    assert process.get("oomScoreAdj") == after


def test_a_sealed_copy_runs_and_cannot_be_changed(tmp_path: Path) -> None:
    sealed = syscalls.sealed_copy("/bin/busybox")
    pid = os.posix_spawn(f"/proc/self/fd/{sealed}", ["true"], {})
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(PermissionError):
        os.pwrite(sealed, b"x", 0)
    os.close(sealed)
    (tmp_path / "empty").write_text("")
    os.close(syscalls.sealed_copy(str(tmp_path / "empty")))
