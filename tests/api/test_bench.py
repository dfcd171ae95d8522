"""The bench's own parts: its client against our server, and what it makes of its figures."""

from pathlib import Path
from typing import Any

import pytest
import trio
from bench.profile import shares
from bench.rows import at_least, at_most, bound, load, save, table, worse
from bench.soak import slope_kb
from bench.wire import Refused, Wire

from holdfast.api.proto.services import content_pb2 as content
from holdfast.api.proto.services import version_pb2 as version

VERSION = "/containerd.services.version.v1.Version/Version"
READ = "/containerd.services.content.v1.Content/Read"
WRITE = "/containerd.services.content.v1.Content/Write"
MIB = 1 << 20


def calls(path: str) -> None:
    wire = Wire(path, [("containerd-namespace", "n")])
    assert version.VersionResponse.FromString(wire.call(VERSION, b"")).version == "1"
    # Ended in another order than they were begun in.
    first, second = wire.begin(VERSION, b""), wire.begin(VERSION, b"")
    assert wire.end(second) == wire.end(first)
    with pytest.raises(Refused, match="unknown method") as caught:
        wire.call("/a.B/C", b"")
    assert caught.value.code == 12
    # More than any window, both ways.
    stream = wire.begin(WRITE, None, ends=False)
    for number in range(1, 9):
        wire.send(stream, content.WriteContentRequest(data=bytes(MIB)).SerializeToString())
        answer = content.WriteContentResponse.FromString(wire.next(stream) or b"")
        assert answer.offset == number * MIB
    request = content.ReadContentRequest(offset=20, size=MIB).SerializeToString()
    stream = wire.begin(READ, request)
    assert sum(len(message) > MIB for message in iter(lambda: wire.next(stream), None)) == 20
    wire.close()
    with pytest.raises(OSError):
        wire.call(VERSION, b"")


async def test_the_client_speaks_with_a_server(house: Any) -> None:
    with trio.fail_after(20):
        await trio.to_thread.run_sync(calls, str(house.path))


def test_rows_say_what_holds(tmp_path: Path) -> None:
    rows = [
        at_least("rate", 4, 100.0, 20.0),
        at_most("time", 1 / 3, 2.0, 4.0),
        bound("memory", 0.6, 0.5),
    ]
    assert [row.holds for row in rows] == [True, False, True]
    assert [row.ratio for row in rows] == [5.0, 0.5, None]
    assert table(rows).count("DOES NOT HOLD") == 1
    save(rows, {}, tmp_path / "results" / "rows.json")
    assert load(tmp_path / "results" / "rows.json") == rows


def test_what_is_worse_than_before_is_told() -> None:
    before = [at_least("rate", 4, 100.0, 20.0), at_most("time", 1, 1.0, 2.0), bound("old", 1, 1)]
    assert worse(before, before, 0.25) == []
    slower = [at_least("rate", 4, 70.0, 20.0), at_most("time", 1, 1.2, 2.0)]
    told = worse(before, slower, 0.25)
    assert len(told) == 2
    assert "rate: held, and does not any more" in told[0]
    assert "old: was not measured" in told[1]
    assert worse(before[:2], [before[0], at_most("time", 1, 1.4, 2.0)], 0.25) == [
        "time: ratio 0.5 became 0.7"
    ]


def test_a_leak_has_a_slope() -> None:
    cycles = list(range(100, 4100, 100))
    assert slope_kb(cycles, [50_000.0] * 40) == pytest.approx(0)
    assert slope_kb(cycles, [50_000 + 0.02 * n for n in cycles]) == pytest.approx(2)
    # What the first third needs is no leak.
    assert slope_kb(cycles, [50_000.0 + min(n, 1000) for n in cycles]) == pytest.approx(0)


def test_a_profile_counts_who_works() -> None:
    stacks = [
        "main (a.py:1);work (b.py:7) 3",
        "main (a.py:2);work (b.py:9);inner (c.py:1) 2",
        "main (a.py:1);get_events (trio/_core/_io_epoll.py:243) 90",
    ]
    own, whole = shares(stacks)
    assert own == {"work (b.py)": 3, "inner (c.py)": 2}
    assert whole["main (a.py)"] == 5
