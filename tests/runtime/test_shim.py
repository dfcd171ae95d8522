"""The shim, with real containers."""

import pytest

pytestmark = pytest.mark.root


async def test_a_container_runs_to_its_exit(house) -> None:
    task = await house.task(["/bin/sh", "-c", "exit 7"])
    pid = await task.create()
    assert await task.client.start() == pid
    exited = await task.exited()
    assert (exited.pid, exited.status) == (pid, 7)
    deleted = await task.client.delete()
    assert deleted.status == 7
    await task.client.shutdown()
