"""System calls of the shim that no other test looks at by themselves."""

from pathlib import Path

import pytest

from holdfast.runtime import syscalls


def test_a_file_takes_the_place_of_another_or_of_none(tmp_path: Path) -> None:
    path, new = tmp_path / "file", tmp_path / "file.tmp"
    for text in ("first", "second", "third"):
        new.write_text(text)
        syscalls.replace_unsynced(str(new), str(path))
        assert path.read_text() == text
        assert not new.exists()
    with pytest.raises(FileNotFoundError):
        syscalls.replace_unsynced(str(new), str(path))
    assert path.read_text() == "third"
