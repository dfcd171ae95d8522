"""What holds for every test, and what tests of several rooms need."""

import sys
from collections.abc import AsyncIterator
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
