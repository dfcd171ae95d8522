"""pykka's own test suite, run against our actor.

The suite is in pykka's sdist; it is fetched with pip as it is configured here, against the hash
of the lock file, kept in `.cache/pykka`, and never copied into the repository. Each of its
tests that takes a runtime is run with ours, hosted by a system in a thread of its own, as a
plain threaded program would.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "pykka"
VERSION = version("pykka")

# A BaseException (^C, SystemExit) in one actor makes pykka stop every actor of the process, of
# any kind. Here it ends the system that the actor lives in, in order, and is raised from it.
DELIBERATE_DIFFERENCES = {
    "test_all_actors_are_stopped_on_base_exception",
    # The same, seen in the log: pykka's line "Stopping all actors" would not be true.
    "test_base_exception_is_logged",
}

CONFTEST = """

import holdfast_runtime
RUNTIMES["holdfast"] = pytest.param(
    Runtime(
        name="holdfast",
        actor_class=holdfast_runtime.PykkaRulesActor,
        event_class=threading.Event,
        future_class=holdfast_runtime.Future,
        sleep_func=time.sleep,
    ),
    id="holdfast",
)

@pytest.fixture(scope="session", params=RUNTIMES.values())
def runtime(request):
    return request.param

@pytest.fixture(autouse=True)
def _an_open_system():  # a test may have ended the last one
    holdfast_runtime.open_system()

@pytest.fixture
def mocker():  # the few names used of pytest-mock
    from types import SimpleNamespace
    from unittest import mock
    def patch_object(*args, **kwargs):
        return mock.patch.object(*args, **kwargs).start()
    yield SimpleNamespace(
        Mock=mock.Mock, MagicMock=mock.MagicMock, NonCallableMock=mock.NonCallableMock,
        patch=SimpleNamespace(object=patch_object),
    )
    mock.patch.stopall()
"""

RUNTIME = """
from holdfast.actors.actor import Actor
from holdfast.actors.future import Future
from holdfast.actors.system import System

def open_system():
    try:
        System.current()
    except RuntimeError:
        System.in_thread()

class PykkaRulesActor(Actor):
    pykka_rules = True
    mailbox_bound = None
"""


def locked() -> str:
    """pykka's lines of the lock file: the version, and the hashes that its sdist may have."""
    lock = (ROOT / "requirements-dev.txt").read_text()
    found = re.search(r"^pykka==.*(\n +--hash=.*)+", lock, re.MULTILINE)
    assert found is not None
    assert found.group().startswith(f"pykka=={VERSION} "), "another pykka is installed"
    return found.group() + "\n"


def fetch() -> Path:
    """The unpacked sdist of the installed pykka; fetched once, and whole or not at all.

    Raises when it cannot be had: without the suite nothing would be shown.
    """
    tree = CACHE / f"pykka-{VERSION}"
    if tree.exists():
        return tree
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        work = Path(name)
        (work / "locked.txt").write_text(locked())
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary"),
            *("pykka", "--require-hashes", "-r", "locked.txt"),
        ]
        for attempts_left in (2, 1, 0):  # an index has its bad moments
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)
            if done.returncode == 0:
                break
            assert attempts_left, done.stdout + done.stderr
        with tarfile.open(work / f"pykka-{VERSION}.tar.gz") as archive:
            # Its hash was checked; early 3.11 has no filter to name.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            archive.extractall(work, **safe)
        try:
            (work / tree.name).rename(tree)
        except OSError:
            assert tree.exists()  # another run was first
    return tree


@pytest.mark.slow
def test_pykka_holds_our_actor_to_its_own_suite(tmp_path: Path) -> None:
    shutil.copytree(fetch() / "tests", tmp_path / "tests")
    with (tmp_path / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(CONFTEST)
    (tmp_path / "holdfast_runtime.py").write_text(RUNTIME)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-o", "faulthandler_timeout=20", "-p", "no:trio", "-k", "holdfast", "tests"]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    outcomes = re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)\[", done.stdout, re.MULTILINE)
    passed = {name for outcome, name in outcomes if outcome == "PASSED"}
    failed = {name for outcome, name in outcomes if outcome != "PASSED"}
    assert len(outcomes) > 130, done.stdout
    assert failed == DELIBERATE_DIFFERENCES, done.stdout
    assert not passed & DELIBERATE_DIFFERENCES
