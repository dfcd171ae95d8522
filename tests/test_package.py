"""The wheel holds the whole package, and its programs start from where it was installed."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import holdfast

REPOSITORY = Path(__file__).parents[1]
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"
ROOMS = ("actors", "supervision", "storage", "runtime", "api")


def run(*words: str | Path, cwd: Path) -> str:
    """A program with nothing of ours in its environment; what it said."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, for setuptools writes beside them."""
    folder = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*ROOMS, "src"):
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=unwanted)
    for name in ("__init__.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    options = ("--quiet", "--disable-pip-version-check", "--no-build-isolation", "--no-deps")
    target = source / "wheels"
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", target, ".", cwd=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel, and its dependencies from here."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    packages = Path(run(python, "-c", SITE, cwd=folder).strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # After its own directory, so that its `holdfast` is found first; links to the sources, which
    # an editable install keeps in .pth files of that place, are not followed from here.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_every_module_and_its_types(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"holdfast/{path.relative_to(REPOSITORY)}"
        for room in ROOMS
        for pattern in ("*.py", "*.pyi")
        for path in (REPOSITORY / room).rglob(pattern)
    }
    assert wanted <= inside
    assert {"holdfast/__init__.py", "holdfast/__main__.py", "holdfast/py.typed"} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "chaos_tests/", "bench/"))]


def test_the_source_archive_holds_the_files_behind_the_links(source: Path) -> None:
    build = "from setuptools import build_meta; print(build_meta.build_sdist('.'))"
    name = run(sys.executable, "-c", build, cwd=source).split()[-1]
    shutil.unpack_archive(source / name, source / "unpacked", filter="data")
    (top,) = (source / "unpacked").iterdir()
    package = top / "src/holdfast"
    assert (package / "__init__.py").is_file()
    assert (package / "runtime/shim.py").is_file()
    assert not (package / "runtime").is_symlink()
    assert (package / "api/proto/types_pb2.pyi").is_file()


def test_an_installed_package_has_its_host_and_commands(python: Path) -> None:
    say = "import holdfast, holdfast.api.host as host; print(host.__file__, holdfast.open.__name__)"
    place, name = run(python, "-c", say, cwd=python.parent).split()
    assert Path(place).is_relative_to(python.parents[1])
    assert name == holdfast.open.__name__
    assert "Commands:" in run(python, "-m", "holdfast", "--help", cwd=python.parent)


@pytest.mark.parametrize("program", ["holdfast.runtime.forkserver", "holdfast.storage.worker"])
def test_an_installed_helper_starts_and_ends_with_its_daemon(python: Path, program: str) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [python, "-I", "-m", program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd="/",
        )
    with ours:
        ours.settimeout(10.0)
        assert ours.recv(4096), "it says hello when it can work"
    assert process.wait(10) == 0
