"""Debian's own unmodified `ctr` drives the daemon.

Each promise is checked against Holdfast, and the same test runs against Debian's containerd
too, so that what stands here is what `ctr` really prints there. containerd runs runc, the
runtime it works with on every host; Holdfast runs its default. Where both are asked in one test,
`pair` holds what they print side by side.
"""

import contextlib
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from bench.daemons import Daemon, running
from driver import Ctr, Pair
from examples import busybox_image

KINDS = ("holdfast", "containerd")
# Some of what ctr makes, such as a view, is held by nothing: a collection that nobody asks for is
# late enough to leave it to its test.
SETTINGS = {
    "holdfast": """
debug_address = "{base}/debug.sock"
opt = "{base}/opt"
gc_schedule_delay_s = 60
gc_startup_delay_s = 60
""",
    "containerd": """
[debug]
address = "{base}/debug.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{base}/opt"
""",
}


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Daemon]]:
    """One of each kind, with busybox in it, for all the tests of a process."""
    with contextlib.ExitStack() as stack:
        started: dict[str, Daemon] = {}
        for kind in KINDS:
            base = tmp_path_factory.mktemp(kind)
            busybox_image.build(base / "busybox.tar")
            settings = SETTINGS[kind].format(base=base)
            started[kind] = stack.enter_context(running(kind, base, settings=settings))
            Ctr(started[kind]).run("images", "import", str(base / "busybox.tar"))
        yield started


@pytest.fixture(scope="session", params=KINDS)
def daemon(request: pytest.FixtureRequest, daemons: dict[str, Daemon]) -> Daemon:
    return daemons[request.param]


@pytest.fixture
def pair(daemons: dict[str, Daemon]) -> Pair:
    """Both daemons, in a namespace of the test's own."""
    namespace = "ns-" + uuid.uuid4().hex[:8]
    return Pair(*(Ctr(daemons[kind], namespace) for kind in KINDS))


@pytest.fixture
def ctr(daemon: Daemon) -> Ctr:
    return Ctr(daemon)


@pytest.fixture
def fresh(daemon: Daemon) -> Ctr:
    """`ctr` in a namespace of the test's own."""
    return Ctr(daemon, "ns-" + uuid.uuid4().hex[:8])


@pytest.fixture
def name(ctr: Ctr) -> Iterator[str]:
    """A container name that is free, and free again afterwards."""
    chosen = "c-" + uuid.uuid4().hex[:8]
    yield chosen
    ctr.raw("tasks", "kill", "-s", "SIGKILL", chosen)
    for _ in range(50):
        if ctr.raw("tasks", "rm", chosen).returncode == 0:
            break
        if chosen not in ctr.raw("tasks", "ls").stdout:
            break
        time.sleep(0.1)
    ctr.raw("containers", "rm", chosen)
    ctr.raw("snapshots", "rm", chosen)
