from pathlib import Path

import pytest

from holdfast.actors.errors import InvalidArgument
from holdfast.api.config import Config, ProxyPlugin, load
from holdfast.api.host import pace_of
from holdfast.storage.collector import Pace


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
        ("registry_hosts = '/a:b'", "registry_hosts must be absolute paths, not 'b'"),
        ("content_sharing = 'most'", "content_sharing is one of shared, isolated"),
        ("pull_ranges_at_once = 0", "pull_ranges_at_once must be at least 1"),
        ("pull_range_bytes = 4096", "pull_range_bytes must be at least 65536"),
        ("pull_stall_s = 0", "pull_stall_s must be more than 0"),
        ("pull_bytes_per_s = -1", "pull_bytes_per_s must not be negative"),
        ("gc_pause_threshold = 0.6", "gc_pause_threshold must be between 0 and 0.5"),
        ("gc_pause_threshold = nan", "gc_pause_threshold must be between"),
        ("gc_deletion_threshold = -1", "gc_deletion_threshold must not be negative"),
        ("gc_mutation_threshold = 1.5", "gc_mutation_threshold must be a int"),
        ("gc_schedule_delay_s = inf", "gc_schedule_delay_s must not be negative"),
        ("gc_startup_delay_s = -0.1", "gc_startup_delay_s must not be negative"),
        ("proxy_plugins = 3", "proxy_plugins must be a table"),
        ("[proxy_plugins]\nx = 3", "proxy_plugins.x must be a table"),
        ("[proxy_plugins.x]\ntype = 'moon'\naddress = '/a'", "proxy_plugins.x.type is one of"),
        ("[proxy_plugins.x]\ntype = 'snapshot'", "proxy_plugins.x.address must be the path"),
        (
            "[proxy_plugins.x]\ntype = 'snapshot'\naddress = '/a'\nwithin_s = 0",
            "proxy_plugins.x.within_s must be above 0",
        ),
        (
            "[proxy_plugins.x]\ntype = 'content'\naddress = '/a'\nwithin_s = inf",
            "proxy_plugins.x.within_s must be above 0, and not endless",
        ),
        (
            "[proxy_plugins.x]\ntype = 'content'\naddress = '/a'\nsnapshotter = 'b'",
            "unknown setting 'proxy_plugins.x.snapshotter'",
        ),
        (
            "[proxy_plugins.x]\ntype = 'snapshot'\naddress = '/a'\nmedia_types = []",
            "unknown setting 'proxy_plugins.x.media_types'",
        ),
        (
            "[proxy_plugins.x]\ntype = 'diff'\naddress = '/a'\nmedia_types = 'a/b'",
            "proxy_plugins.x.media_types must be a list of strings",
        ),
        (
            "[proxy_plugins.x]\ntype = 'diff'\naddress = '/a'\nmedia_types = [1]",
            "proxy_plugins.x.media_types must be a str",
        ),
        (
            "[proxy_plugins.x]\ntype = 'snapshot'\naddress = '/a'\nadress = '/b'",
            "unknown setting 'proxy_plugins.x.adress'",
        ),
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


def test_proxy_plugins_are_tables(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "[proxy_plugins.lazy]\ntype = 'snapshot'\naddress = 'unix:///run/lazy.sock'\n"
        "[proxy_plugins.other]\ntype = 'snapshot'\naddress = '/o'\nwithin_s = 5\n"
        "snapshotter = 'native'\n"
        "[proxy_plugins.blobs]\ntype = 'content'\naddress = '/b'\n"
        "[proxy_plugins.differ]\ntype = 'diff'\naddress = '/d'\nmedia_types = ['a/b', 'c/d']\n"
    )
    assert load(file, {}).proxy_plugins == {
        "blobs": ProxyPlugin(type="content", address="/b", within_s=10.0),
        "differ": ProxyPlugin(
            type="diff", address="/d", media_types=("a/b", "c/d"), within_s=600.0
        ),
        "lazy": ProxyPlugin(type="snapshot", address="unix:///run/lazy.sock"),
        "other": ProxyPlugin(type="snapshot", address="/o", snapshotter="native", within_s=5.0),
    }


def test_the_settings_of_the_collector_are_its_pace(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        "gc_pause_threshold = 0.1\ngc_deletion_threshold = 7\ngc_mutation_threshold = 0\n"
        "gc_schedule_delay_s = 2\ngc_startup_delay_s = 0\n"
    )
    pace = pace_of(load(file, {}))
    assert pace == Pace(
        share_max=0.1, deletions_max=7, writes_max=0, delay_s=2.0, start_delay_s=0.0
    )
    assert pace_of(Config()) == Pace()
