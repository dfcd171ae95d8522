"""What README.md and docs/ tell a reader to type does what they say."""

import os
import re
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest

from holdfast.api.cli.main import cli
from holdfast.api.config import Config
from holdfast.api.containerd.command import containerd
from holdfast.api.daemon import daemon as daemon_command

sys.path.insert(0, str(Path(__file__).parents[2]))
from bench.daemons import end_shims_of

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
ON_A_TERMINAL = f"""\
{sys.executable} -c '
import sys; sys.path.insert(0, "{HERE}")
from terminal import on_a_terminal
seen, status = on_a_terminal(sys.argv[1:], "exit\\n", "/ # ")
print(seen); sys.exit(status)' """
OPTION = r"(?<![\w-])--?[a-z][a-z-]*"
SUBCOMMANDS = (
    *("rm", "usage", "get", "remove", "teardown", "default", "dump", "migrate"),
    *("tag", "inspect", "check", "prune", "mount", "unmount", "pin", "unpin"),
)
EVERYWHERE = {"-h", "--help", "--version"}


def blocks(page: str, language: str) -> list[str]:
    """The page's blocks of one language, in order."""
    text = (REPOSITORY / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed(line: str) -> str:
    """A line as a script can run it, where a person at a terminal does something besides."""
    if line.startswith("make "):
        return ":"  # it is what installed the tests
    if " -it " in line:
        return ON_A_TERMINAL + line
    if " logs -f " in line:
        return f"timeout 2 {line.partition('#')[0]} || test $? = 124"
    return line.replace("; echo $?", " || echo $?")  # for `set -e`


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory from which the repository's programs are where the pages say."""
    with tempfile.TemporaryDirectory(prefix="hf-docs-", dir="/tmp") as folder:
        base = Path(folder)
        (base / ".venv").symlink_to(sys.prefix)
        (base / "examples").symlink_to(REPOSITORY / "examples")
        yield base
        end_shims_of(base)


def run(base: Path, script: str, *around: str) -> str:
    """Run a script in bash, its daemons end with it; what it said."""
    script = f"set -e\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n{script}"
    done = subprocess.run(
        [*around, "bash", "-c", script],
        cwd=base,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.mark.root
@pytest.mark.slow
def test_the_readme_runs_a_container_in_five_lines(base: Path) -> None:
    (shell,) = [block for block in blocks("README.md", "sh") if "holdfastd" in block]
    (program,) = blocks("README.md", "python")
    lines = shell.splitlines()
    assert len(lines) == 5
    for name in ("lib", "run"):
        (base / name).mkdir()
    # The lines name no directories: what is /var/lib and /run to them is ours, in a namespace.
    own = [f"mount --bind {base}/lib /var/lib", f"mount --bind {base}/run /run"]
    said = run(base, "\n".join([*own, *map(typed, lines)]), "unshare", "--mount")
    assert said.count("hello from a container") == 1
    assert (base / "lib/holdfast/holdfast.db").exists()

    program = program.replace("/var/lib/app", f"{base}/app").replace("/run/app", f"{base}/run/app")
    statements = textwrap.indent(program, "    ")
    (base / "program.py").write_text(
        f"async def main():\n{statements}\n    print(exited)\nimport trio\ntrio.run(main)\n"
    )
    assert r"stdout=b'hello\n'" in run(base, ".venv/bin/python program.py")


@pytest.mark.root
@pytest.mark.slow
def test_the_tutorial_works_from_beginning_to_end(base: Path) -> None:
    shell = "".join(blocks("docs/tutorial.md", "sh"))
    (program,) = blocks("docs/tutorial.md", "python")
    interface = f"hf{os.getpid()}"
    (base / "network.py").write_text(in_place(program, base).replace('"hf0"', f'"{interface}"'))
    lines = [*map(typed, in_place(shell, base).splitlines()), "python network.py"]
    said = run(base, "\n".join(lines))
    for each in ("hello from a container\n", "\n7\n", "\n137\n", "clock", "recovery", "\nhello\n"):
        assert each in said, said
    assert said.count("\ntick\ntick\n") == 1
    assert "\ncontainerd holdfast " in said
    assert "inet 10.88.0.2/24" in said
    assert "1 packets received" in said
    assert " exit 0\n" in said
    assert not Path(f"/sys/class/net/{interface}").exists()


def test_every_page_is_reached_from_the_readme_and_every_link_leads_somewhere() -> None:
    reached, waiting = set[Path](), [REPOSITORY / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            found = (page.parent / path).resolve() if path else page
            assert found.exists(), f"{page.name}: {target}"
            pages = sorted(found.glob("*.md")) if found.is_dir() else [found]
            waiting += [each for each in pages if each.suffix == ".md"]
            assert not anchor or anchor in anchors(found), f"{page.name}: {target}"
    assert set((REPOSITORY / "docs").rglob("*.md")) <= reached


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.root
@pytest.mark.slow
def test_docker_runs_on_holdfast_as_its_page_says(base: Path) -> None:
    shell = in_place("".join(blocks("docs/docker.md", "sh")), base)
    # Debian's docker, where another one comes first in PATH.
    shell = f'docker() {{ /usr/bin/docker --config {base}/config "$@"; }}\n{shell}'
    said = run(base, shell)
    assert said.count("hello from docker\n") == 1
    assert said.count("\nclock\n") == 1
    assert len(re.findall(r"^\w+ \w+ +\d+ [\d:]+ UTC \d+$", said, re.MULTILINE)) > 2
    assert len([line for line in said.splitlines() if "while true" in line]) >= 2


@pytest.mark.root
@pytest.mark.slow
def test_images_come_from_registries_as_the_page_says(base: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shell = in_place("".join(blocks("docs/registries.md", "sh")), base)
    said = run(base, shell.replace("localhost:5000", f"localhost:{port}"))
    assert said.count(f"localhost:{port}/team/box:1 sha256:") == 2
    assert "\nhello from a registry\n" in said
    assert f"logged in at localhost:{port} as alice" in said
    assert "\nregistry.example/team/box:1 sha256:" in said


def in_place(text: str, base: Path) -> str:
    """The tutorial's directories below ours."""
    return text.replace("/tmp/hf2", f"{base}/hf2").replace("/tmp/hf/", f"{base}/hf/")


def documented(section: str) -> dict[str, set[str]]:
    """Command -> the option names that docs/reference/cli.md gives it."""
    text = (REPOSITORY / "docs/reference/cli.md").read_text()
    (body,) = re.findall(rf"^# The `{section}` command\n(.*?)(?=^# |\Z)", text, re.M | re.S)
    found = {"": set(re.findall(OPTION, body.split("`")[1]))}
    for row in re.findall(r"^\| (`.*?`) \|", body.replace(r"\|", "/"), re.M):
        for usage in re.findall(r"`(.*?)`", row):
            words = usage.split()
            nested = words[1:2] if words[1:] and words[1].islower() else []
            name = " ".join(words[:1] + [w for w in nested if w in SUBCOMMANDS])
            found.setdefault(name, set()).update(re.findall(OPTION, usage))
    return found


def real(command: click.Command, name: str = "") -> Iterator[tuple[str, list[set[str]]]]:
    """Every command that is not hidden, with the names of each of its options."""
    runs_alone = not isinstance(command, click.Group) or command.invoke_without_command
    if runs_alone or not name:
        options = [each for each in command.params if isinstance(each, click.Option)]
        yield name, [{*each.opts, *each.secondary_opts} for each in options]
    if isinstance(command, click.Group):
        for key, inner in command.commands.items():
            if not inner.hidden:
                yield from real(inner, f"{name} {key}".strip())


@pytest.mark.parametrize(
    ("section", "command"),
    [("holdfast", cli), ("holdfastd", daemon_command), ("containerd", containerd)],
)
def test_the_reference_names_each_command_with_its_options(
    section: str, command: click.Command
) -> None:
    pages = documented(section)
    commands = dict(real(command))
    assert section == "holdfastd" or set(pages) == set(commands)
    for name, options in commands.items():
        told = pages[name]
        known: set[str] = set().union(*options)
        assert told <= known | EVERYWHERE, f"{name}: {told - known} is no option"
        missing = [names for names in options if not names & (told | EVERYWHERE)]
        assert not missing, f"{name}: {missing} is not in the reference"


def test_every_command_and_option_has_its_help() -> None:
    def walk(command: click.Command, name: str) -> Iterator[str]:
        if not command.help:
            yield name
        for each in command.params:
            if isinstance(each, click.Option) and not each.help:
                yield f"{name} {each.opts[0]}"
        if isinstance(command, click.Group):
            for key, inner in command.commands.items():
                yield from walk(inner, f"{name} {key}")

    every = {"holdfast": cli, "holdfastd": daemon_command, "containerd": containerd}
    assert [fault for name, command in every.items() for fault in walk(command, name)] == []


def test_the_reference_names_each_setting_with_its_default() -> None:
    text = (REPOSITORY / "docs/reference/cli.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", text, re.MULTILINE)
    defaults = {each.name: getattr(Config(), each.name) for each in fields(Config)}
    assert told == [
        (name, "none" if value in ("", {}) else str(value)) for name, value in defaults.items()
    ]
