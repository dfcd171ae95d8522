"""The nemeses as fixtures of pytest, for tests of other projects.

    pytest_plugins = "holdfast.chaos"

    def test_my_client_lives_through_it(holdfast_daemon, chaos_history):
        my_client.connect(holdfast_daemon.address)
        nemeses.kill(holdfast_daemon.processes())
        holdfast_daemon.start_again()

Nothing is imported before a fixture is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from .history import History
    from .lent import LentDaemon
    from .nemeses import Failpoints, Runtime


@pytest.fixture
def chaos_history() -> History:
    """Where the nemeses write what they did; `checkers.judge` reads it."""
    from .history import History

    return History()


@pytest.fixture
def chaos_failpoints(tmp_path: Path) -> Failpoints:
    """Rules for the n-th step of `holdfast_daemon`, which is started with them."""
    from .nemeses import Failpoints

    return Failpoints(tmp_path / "failpoints")


@pytest.fixture
def chaos_runtime(tmp_path: Path) -> Runtime:
    """An OCI runtime that can be made to hang, crawl, fail or crash: name it by its `path`."""
    from .nemeses import Runtime

    return Runtime(tmp_path / "runtime")


@pytest.fixture
def holdfast_daemon(chaos_history: History, chaos_failpoints: Failpoints) -> Generator[LentDaemon]:
    """A daemon that answers, with directories of its own; needs root."""
    from .lent import lend

    with lend(chaos_history, chaos_failpoints.environment) as daemon:
        yield daemon
