"""Our supervisor and Erlang/OTP's lead the same lives."""

import importlib.util
import logging
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from holdfast.actors.system import System
from holdfast.supervision import decision

pytestmark = pytest.mark.skipif(shutil.which("erl") is None, reason="needs erlang-base")


@pytest.fixture
def difference() -> Iterator[ModuleType]:
    """The command beside this file."""
    where = Path(__file__).with_name("otp_difference.py")
    spec = importlib.util.spec_from_file_location("otp_difference", where)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["otp_difference"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logging.disable(logging.CRITICAL)
    yield module
    logging.disable(logging.NOTSET)
    del sys.modules["otp_difference"]


async def test_no_history_tells_them_apart(difference):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    async with System.open():
        found = await difference.compare(1000, seed)
    assert not found.differences, f"seed {seed}: " + "\n".join(map(str, found.differences[:3]))
    assert found.escalated > found.histories / 10


async def test_a_changed_decision_is_found_out(difference, monkeypatch):
    wrong = {**decision.STEPS}
    wrong[decision.Restart.TRANSIENT, decision.Kind.NORMAL] = decision.Step.FORGET
    monkeypatch.setattr(decision, "STEPS", wrong)
    async with System.open():
        found = await difference.compare(200, 1)
    assert found.differences
