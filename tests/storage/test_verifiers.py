import json
from pathlib import Path

import pytest
import trio

from holdfast.actors.errors import FailedPrecondition, PermissionDenied
from holdfast.storage.descriptor import OCI_INDEX, describe
from holdfast.storage.verifiers import Verifiers

NAME = "example.org/tool:1"
TARGET = describe(b"an index", OCI_INDEX)


def program(folder: Path, name: str, text: str, mode: int = 0o755) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(mode)


def of(folder: Path, programs_max: int = 10, within_s: float = 20) -> Verifiers:
    return Verifiers(folder, programs_max=programs_max, within_s=within_s)


async def test_each_program_is_told_the_image_and_all_must_let_it_pass(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    for name in ("a", "b"):
        program(folder, name, f'echo "$@" > {tmp_path}/{name}.args; cat > {tmp_path}/{name}.stdin')
    await of(folder).verify(NAME, TARGET)
    for name in ("a", "b"):
        assert (tmp_path / f"{name}.args").read_text().split() == [
            *("-name", NAME, "-digest", TARGET.digest),
            *("-stdin-media-type", "application/vnd.oci.descriptor.v1+json"),
        ]
        assert json.loads((tmp_path / f"{name}.stdin").read_text()) == TARGET.to_json()
    program(folder, "c", "echo because; echo aside >&2; exit 3")
    with pytest.raises(
        PermissionDenied, match=r"refused by verifier c \(exit status 3\): because$"
    ):
        await of(folder).verify(NAME, TARGET)
    # Beyond the bound nobody is asked.
    await of(folder, programs_max=2).verify(NAME, TARGET)
    await of(folder, programs_max=0).verify(NAME, TARGET)
    with pytest.raises(PermissionDenied):
        await of(folder, programs_max=-1).verify(NAME, TARGET)


async def test_without_programs_every_image_passes(tmp_path: Path) -> None:
    await Verifiers(None, programs_max=10, within_s=1).verify(NAME, TARGET)
    await of(tmp_path / "never").verify(NAME, TARGET)
    await of(tmp_path).verify(NAME, TARGET)
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="Not a directory"):
        await of(tmp_path / "file").verify(NAME, TARGET)


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("exit 0", 0o644, "Permission denied"),
        ("sleep 100", 0o755, "no end in 1 s"),
        # What it has left behind holds its output.
        ("sleep 100 & exit 0", 0o755, "no end in 1 s"),
        ("yes", 0o755, "says more than"),
    ],
)
async def test_silence_is_no_consent(tmp_path: Path, text: str, mode: int, said: str) -> None:
    program(tmp_path / "bin", "v", text, mode)
    with trio.fail_after(30), pytest.raises(FailedPrecondition, match=said):
        await of(tmp_path / "bin", within_s=1).verify(NAME, TARGET)


async def test_a_verifier_that_reads_nothing_and_says_much_is_heard_in_part(tmp_path: Path) -> None:
    program(tmp_path / "bin", "v", "head -c 100000 /dev/zero | tr '\\0' x; exit 1")
    with pytest.raises(PermissionDenied) as refused:
        await of(tmp_path / "bin").verify(NAME, TARGET)
    assert 30_000 < len(str(refused.value)) < 34_000
