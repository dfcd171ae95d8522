"""500 pulls through a proxy that does harm; and that the looking would find what it looks for."""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from faultproxy import BASIC, KINDS, SECRET
from faults import RIGHT, Found, Plan, is_unclear, pulls, shared_out

from holdfast.storage.digest import Digest
from holdfast.storage.ingest import Ingest, IngestFile, Order
from holdfast.storage.registry.fetch import FetchActor
from holdfast.storage.registry.pull import Pull

pytestmark = pytest.mark.root
RUNS = 500


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.configure()


@pytest.mark.slow
async def test_every_harmed_pull_ends_well() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    found = await shared_out(seed, RUNS, processes=2)
    print(found)
    assert not found.problems, f"seed {seed}:\n" + "\n".join(found.problems[:10])
    # The test is worth its time only where many pulls come through, and many do not.
    ends = found.ends.total()
    assert ends / 10 < found.ends[RIGHT] < ends * 9 / 10
    assert found.faults.keys() == set(KINDS)


def only(kind: str) -> Callable[[int, int], Plan]:
    """Each answer harmed in this way."""

    def draw(seed: int, run: int) -> Plan:
        drawn = Plan.draw(seed, run)
        return replace(
            drawn, kinds=[kind], harmed=1.0, pulls=1, leaves_after_s=None, image=2, heads=False
        )

    return draw


def texts(found: Found) -> str:
    return "\n".join(found.problems)


async def test_a_store_that_believes_what_it_is_told_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = IngestFile.__init__

    def begin_believing(self: IngestFile, order: Order) -> None:
        begin(self, order)
        wanted.setdefault(id(self), order.expected or Digest(""))
        kept.append(self)

    wanted: dict[int, Digest] = {}
    kept: list[IngestFile] = []  # so that no other gets its id
    monkeypatch.setattr(IngestFile, "__init__", begin_believing)
    monkeypatch.setattr(IngestFile, "digest", lambda self: wanted[id(self)])
    monkeypatch.setattr(IngestFile, "digest_by", lambda self, _: wanted[id(self)])
    found = await pulls(tmp_path, 1, range(2), only("other"))
    assert "wrong bytes are visible" in texts(found)


async def test_wrong_bytes_that_are_kept_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forget_nothing(_: FetchActor) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Ingest, "abort", Ingest.close)
    monkeypatch.setattr(FetchActor, "_forget", forget_nothing)
    found = await pulls(tmp_path, 1, range(2), only("other"))
    assert "an ingest is left that can only go wrong" in texts(found)


async def test_a_lease_that_is_left_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def do_nothing(_: Pull) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(Pull, "done", do_nothing)
    assert "leases are left" in texts(await pulls(tmp_path, 1, range(1), only("slow")))


def test_an_error_says_what_it_is_about_and_no_secret() -> None:
    assert not is_unclear("Unavailable: 127.0.0.1:5000/a:1: HTTP status 500")
    assert is_unclear("Unavailable: it went wrong")
    assert is_unclear(f"Unavailable: 127.0.0.1:5000/a:1: {SECRET}")
    assert is_unclear(f"Unavailable: 127.0.0.1:5000/a:1: {BASIC}")


def test_a_seed_gives_the_same_harm() -> None:
    assert Plan.draw(7, 3) == Plan.draw(7, 3)
    assert Plan.draw(7, 3) != Plan.draw(8, 3)
