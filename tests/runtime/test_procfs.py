"""What /proc tells, and the pidfd that remembers."""

import os
import select
import signal

import pytest

from holdfast.runtime import procfs, syscalls

NOBODY = 2**22 + 1


def test_a_name_with_parentheses_does_not_confuse() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    stat = procfs.parse_stat(f"7 (a) b (c)) S {fields}")
    assert (stat.state, stat.parent, stat.start_time_ticks, stat.exit_code) == ("S", 4, 22, 52)


def test_who_is_gone_has_no_identity() -> None:
    assert procfs.stat(NOBODY) is None
    assert procfs.identity(NOBODY) is None
    assert procfs.open_pidfd(procfs.Identity(NOBODY, 1)) is None
    assert procfs.cgroup_paths(NOBODY) == {}


def test_a_pidfd_is_opened_of_exactly_this_process() -> None:
    ours = procfs.identity(os.getpid())
    assert ours is not None
    pidfd = procfs.open_pidfd(ours)
    assert pidfd is not None
    os.close(pidfd)
    assert procfs.open_pidfd(procfs.Identity(ours.pid, ours.start_time_ticks + 1)) is None


def test_capabilities() -> None:
    assert procfs.has_capability(0) == (os.geteuid() == 0)
    assert not procfs.has_capability(60)


@pytest.mark.root
def test_an_exit_is_known_before_and_after_the_reap() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    assert syscalls.pidfd_exit(pidfd) is None
    os.kill(pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    stat = procfs.stat(pid)
    assert stat is not None
    assert (stat.state, stat.exit_code) == ("Z", signal.SIGKILL)
    os.waitpid(pid, 0)
    assert syscalls.pidfd_exit(pidfd) in (signal.SIGKILL, None)  # None before Linux 6.15
    os.close(pidfd)
    with open(os.devnull) as other:
        assert syscalls.pidfd_exit(other.fileno()) is None
