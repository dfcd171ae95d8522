"""What holds for every test, and what tests of several rooms need."""

import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples import busybox_image

import holdfast
from holdfast.api.host import Host

# An embedded host sets up logging where nobody has, for the whole process, and later tests that
# capture logs would miss what its level leaves out.
structlog.configure()

# A namespace that a test makes for itself: a word, and a few random digits.
OF_A_TEST = re.compile(r"[a-z]+-[0-9a-f]{6,12}")


@pytest.fixture(scope="session", autouse=True)
def no_cgroup_of_a_namespace_is_left() -> Iterator[None]:
    """containerd's clients name a container's cgroup by namespace and id, and whoever removes the
    container leaves the namespace's. Those that are empty go; a container's own would stay."""
    before = set(_cgroups())
    yield
    for path in set(_cgroups()) - before:
        if OF_A_TEST.fullmatch(path.name):
            with suppress(OSError):
                path.rmdir()


def _cgroups() -> Iterator[Path]:
    root = Path("/sys/fs/cgroup")
    for pattern in ("*", "*/*"):  # a tree alone, or one for each controller
        for path in root.glob(pattern):
            if path.is_dir():
                yield path


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    """An embedded host with a busybox image; no container of the test outlives it."""
    archive = tmp_path / "busybox.tar"
    busybox_image.build(archive)
    async with holdfast.open(root=tmp_path / "root", state=tmp_path / "state") as opened:
        await opened.import_archive(archive)
        try:
            yield opened
        finally:
            for container in opened.containers.list("default"):
                await opened.remove(container.id, force=True)
