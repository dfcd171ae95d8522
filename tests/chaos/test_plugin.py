"""Another project's tests get the nemeses by one line, and pay nothing where they do not ask."""

import subprocess
import sys

import pytest

pytest_plugins = ("pytester",)

OPTIONS = ("-p", "no:cacheprovider", "-p", "no:trio", "-p", "no:anyio", "-W", "ignore")
THEIRS = """
    import subprocess

    from holdfast.chaos import checkers
    from holdfast.chaos.processes import Role


    def test_a_daemon_is_lent_killed_and_started_again(holdfast_daemon, chaos_history):
        first = holdfast_daemon.pid
        roles = {found.role for found in holdfast_daemon.processes()}
        assert {Role.DAEMON, Role.FORK_SERVER} <= roles
        assert holdfast_daemon.kill() >= 2
        assert holdfast_daemon.start_again() < 30
        assert holdfast_daemon.pid != first
        assert not checkers.judge(chaos_history)


    def test_a_failpoint_kills_it(holdfast_daemon, chaos_failpoints, chaos_history):
        with chaos_failpoints.armed(chaos_history, "daemon:store.committed=kill"):
            command = ["ctr", "-a", holdfast_daemon.address, "namespaces", "create", "theirs"]
            assert subprocess.run(command, capture_output=True).returncode != 0
        holdfast_daemon.wait_dead()
        holdfast_daemon.start_again()
        command = ["ctr", "-a", holdfast_daemon.address, "namespaces", "ls"]
        listed = subprocess.run(command, capture_output=True, text=True)
        assert listed.returncode == 0


    def test_a_runtime_fails_while_it_is_told_to(chaos_runtime, chaos_history):
        with chaos_runtime.failing(chaos_history, 9):
            assert subprocess.run([chaos_runtime.path, "--version"]).returncode == 9
        assert subprocess.run([chaos_runtime.path, "--version"]).returncode == 0
"""


@pytest.mark.root
@pytest.mark.slow
def test_another_projects_tests_are_lent_a_daemon_and_nemeses(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = "holdfast.chaos"')
    pytester.makepyfile(THEIRS)
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=3)


def test_the_plugin_imports_nothing_before_it_is_asked(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = "holdfast.chaos"')
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_there():
            assert not {"trio", "google.protobuf", "holdfast.actors"} & set(sys.modules)
        """
    )
    pytester.runpytest_subprocess(*OPTIONS).assert_outcomes(passed=1)


def test_a_run_that_does_not_name_the_plugin_has_none_of_it() -> None:
    command = [sys.executable, "-m", "pytest", "--fixtures", "-q", *OPTIONS, "/dev/null"]
    told = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/")
    assert "holdfast" not in told.stdout
