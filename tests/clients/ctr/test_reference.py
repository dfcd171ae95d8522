"""docs/reference/ctr.md names every command of this `ctr`, and what it says is tested."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from driver import Pair

PAGE = Path(__file__).parents[3] / "docs/reference/ctr.md"
STATES = ("same", "alike", "refused")
# Words that a test may use for a command.
ALIASES = {"delete": "rm", "list": "ls", "remove": "rm"}


@cache
def told() -> dict[tuple[str, str], str]:
    """(group, command) -> state; a command of its own has no second word."""
    rows = re.findall(r"^\| `([\w-]+)` \| (?:`([\w-]+)`)? ?\| (\w+) \|", PAGE.read_text(), re.M)
    return {(group, command): state for group, command, state in rows}


def commands(*group: str) -> list[str]:
    """The commands that a help page lists, each by its first name."""
    text = subprocess.run(
        ["ctr", *group, "--help"], capture_output=True, text=True, check=True
    ).stdout
    listed = re.search(r"^COMMANDS:\n(.*?)^$", text, re.M | re.S)
    return re.findall(r"^   ([\w-]+)", listed[1], re.M) if listed else []


def real() -> Iterator[tuple[str, str]]:
    for group in commands():
        if group != "help":
            yield from ((group, command) for command in commands(group) or [""])


def test_the_table_has_every_command_of_this_ctr_and_no_other() -> None:
    assert list(told()) == list(real())
    assert set(told().values()) <= set(STATES)


@pytest.mark.parametrize(("group", "command"), [key for key, state in told().items()])
def test_a_command_that_works_has_a_test(group: str, command: str) -> None:
    sources = "\n".join(
        file.read_text() for file in Path(__file__).parent.glob("test_*.py")
        if file != Path(__file__)
    )  # fmt: skip
    words = "|".join(re.escape(word) for word in {command, ALIASES.get(command, command)})
    pattern = rf'"{group}",\s*(?:\*debug,\s*|"-d", f"[^"]*",\s*|"--id", \w+,\s*)?"({words})"'
    pattern = pattern if command else rf'"{group}"'
    if told()[group, command] != "refused":
        assert re.search(pattern, sources), f"{group} {command} is in no test"


@pytest.mark.root
@pytest.mark.slow
def test_what_is_asked_of_nobody_is_refused_alike(pair: Pair) -> None:
    for verb in ("delete", "start", "state"):
        assert "fail to connect" in pair.same("shim", "--id", "never", verb, code=1)
    for profile in commands("pprof"):
        pair.same("pprof", "--debug-socket", "@/never.sock", profile, code=1)
