"""An open store for each test that asks for one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from holdfast.storage.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "meta.db") as opened:
        yield opened
