from pathlib import Path

import pytest

from holdfast.actors.errors import InvalidArgument
from holdfast.api.config import Config, load


def test_without_file_or_flags_the_defaults_hold(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    assert load(tmp_path / "empty.toml", {}) == Config()


def test_the_file_changes_defaults_and_the_command_line_changes_both(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('root = "/srv/holdfast"\nlog_level = "debug"\nshutdown_within_s = 3\n')
    config = load(file, {"log_level": "warn", "state": None})
    assert config.root == Path("/srv/holdfast")
    assert config.log_level == "warn"
    assert config.state == Config().state
    assert config.shutdown_within_s == 3.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rot = '/srv'", "unknown setting 'rot'"),
        ("root = 3", "root must be a string"),
        ("root = 'srv'", "root must be an absolute path"),
        ("workers = true", "workers must be a int"),
        ("workers = 0", "workers must be at least 1"),
        ("log_level = 'loud'", "log_level is one of"),
        ("root = ", "Invalid value"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(InvalidArgument, match=said):
        load(file, {})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="No such file"):
        load(tmp_path / "absent.toml", {})
