"""The daemon is imported quickly, and is the same daemon."""

import copy
import dataclasses
import subprocess
import sys
import tomllib
from dataclasses import FrozenInstanceError, dataclass, field
from pathlib import Path

import pytest

from holdfast.api.boot import LEFT_OUT, methods_made_on_use
from holdfast.api.identity import VERSION

ROOT = Path(__file__).parents[2]

with methods_made_on_use():

    @dataclass
    class Plain:
        number: int
        names: list[str] = field(default_factory=list)

        def __post_init__(self) -> None:
            self.number += 1

    @dataclass(frozen=True, slots=True, kw_only=True, order=True)
    class Record:
        """With all that there is to make."""

        one: int
        two: str = "2"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Wider(Record):
        """Its methods are its own."""

        three: float = 3.0


def test_methods_made_on_use_are_those_of_a_dataclass() -> None:
    plain = Plain(1)
    assert (plain.number, plain.names) == (2, [])
    plain.names.append("x")
    assert Plain(1) == Plain(1) != plain
    assert repr(plain) == "Plain(number=2, names=['x'])"
    with pytest.raises(TypeError, match=r"Plain\.__init__\(\) missing 1 required"):
        Plain()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        hash(plain)

    record, wider = Record(one=1), Wider(one=1)
    assert record == Record(one=1)
    assert record != wider
    assert hash(record) == hash(Record(one=1))
    assert record < Record(one=2)
    assert sorted([Record(one=3), Record(one=1)])[0] == record
    assert repr(wider) == "Wider(one=1, two='2', three=3.0)"
    assert dataclasses.replace(wider, three=4.0).three == 4.0
    assert copy.copy(wider) == wider
    assert not hasattr(wider, "__dict__")
    for thing in (record, wider):
        with pytest.raises(FrozenInstanceError):
            thing.one = 5  # type: ignore[misc]
        with pytest.raises(FrozenInstanceError):
            del thing.one  # type: ignore[misc]
    assert Record.__init__.__qualname__ == "Record.__init__"
    assert "method" not in Record.__init__.__code__.co_name


def test_a_method_is_made_once() -> None:
    with methods_made_on_use():

        @dataclass
        class Fresh:
            one: int

    promise = vars(Fresh)["__init__"]
    Fresh(1)
    made = vars(Fresh)["__init__"]
    Fresh(2)
    assert promise is not made is vars(Fresh)["__init__"]
    assert dataclass(type("After", (), {"__annotations__": {"a": int}}))(1).a == 1  # type: ignore[attr-defined]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_what_was_left_out_is_there_for_whoever_asks_later() -> None:
    told = run(
        "import sys, holdfast.api.boot as boot; boot.load_daemon()\n"
        "print([name in sys.modules for name in boot.LEFT_OUT])\n"
        "print(type(sys.modules[boot.ON_DEMAND]).__name__)\n"
        "import lzma; print(lzma.decompress(lzma.compress(b'read')))\n"
        "from holdfast.api.proto.types_pb2 import Envelope; print(Envelope(topic='/read'))\n"
    )
    assert told.splitlines() == [
        str([False] * len(LEFT_OUT)), "_LazyModule", "b'read'", 'topic: "/read"', ""
    ]  # fmt: skip


def test_every_dataclass_of_the_daemon_is_the_same_however_it_was_imported() -> None:
    shown = (
        "import dataclasses, inspect, sys\n"
        "for name in sorted(sys.modules):\n"
        "    its = vars(sys.modules[name]) if 'holdfast' in name else {}\n"
        "    for of, each in sorted(its.items()):\n"
        "        if isinstance(each, type) and dataclasses.is_dataclass(each):\n"
        "            names = [f.name for f in dataclasses.fields(each)]\n"
        "            print(name, of, names, each.__doc__, sorted(vars(each)))\n"
    )
    quickly = run("import holdfast.api.boot as boot; boot.load_daemon()\n" + shown)
    plainly = run("import holdfast.api.boot, holdfast.api.daemon\n" + shown)
    assert len(quickly.splitlines()) > 150
    assert quickly == plainly


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
