"""containerd's configuration, as files of every version have it, becomes Holdfast's own."""

import math
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument
from holdfast.api.config import Config, ProxyPlugin
from holdfast.api.containerd.document import read
from holdfast.api.containerd.migration import migrated
from holdfast.api.containerd.settings import daemon_config, default_document, seconds
from holdfast.api.containerd.toml import dumps

NO_FLAGS = dict.fromkeys(("root", "state", "address", "log_level"), "")
CRI = "io.containerd.grpc.v1.cri"
IMAGES, RUNTIME = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"


def from_text(tmp_path: Path, text: str, **flags: str) -> tuple[Config, list[str]]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    config, remarks = daemon_config(file, {**NO_FLAGS, **flags})
    return config, [remark.replace(str(tmp_path), "") for remark in remarks]


@pytest.fixture(scope="module")
def real_default() -> str:
    """What Debian's containerd prints."""
    return subprocess.run(
        ["containerd", "config", "default"], capture_output=True, text=True, check=True
    ).stdout


def test_the_real_default_starts_with_containerds_places_and_without_a_remark(
    tmp_path: Path, real_default: str
) -> None:
    config, remarks = from_text(tmp_path, real_default)
    assert remarks == []
    assert config.root == Path("/var/lib/containerd")
    assert config.state == Path("/run/containerd")
    assert config.address == "/run/containerd/containerd.sock"
    assert config.ttrpc_address == "/run/containerd/containerd.sock.ttrpc"
    assert config.opt == Path("/opt/containerd")
    assert config.log_level == "info"
    assert config.gc_startup_delay_s == pytest.approx(0.1)


def test_the_real_default_migrates_to_what_migrates_no_further(real_default: str) -> None:
    before = tomllib.loads(real_default)
    after = migrated(before)
    assert before == tomllib.loads(real_default)  # the input is left as it was
    assert after["version"] == 4
    assert migrated(after) == after
    assert not {"grpc", "ttrpc", "metrics"} & set(after)
    plugins = after["plugins"]
    assert set(plugins[CRI]) >= {"disable_tcp_service", "stream_server_port"}
    assert plugins[IMAGES]["snapshotter"] == "overlayfs"
    assert plugins[IMAGES]["pinned_images"] == {"sandbox": before["plugins"][CRI]["sandbox_image"]}
    assert plugins[RUNTIME]["cni"]["bin_dirs"] == ["/opt/cni/bin"]
    assert plugins[RUNTIME]["containerd"]["default_runtime_name"] == "runc"
    assert "snapshotter" not in plugins[RUNTIME]["containerd"]
    # Every setting of the CRI is in one of the three.
    moved = {*plugins[CRI], *plugins[IMAGES], *plugins[RUNTIME], "sandbox_image"}
    assert set(before["plugins"][CRI]) <= moved


V2 = f"""
version = 2
root = "/srv/root"
state = "/srv/state"
oom_score = -7
[grpc]
address = "/srv/api.sock"
uid = 3
gid = 4
[debug]
level = "trace"
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.1
mutation_threshold = 7
startup_delay = "1m1.5s"
[plugins."{CRI}".containerd]
snapshotter = "native"
default_runtime_name = "slow"
[plugins."{CRI}".containerd.runtimes.slow]
runtime_type = "io.containerd.runc.v2"
[plugins."{CRI}".containerd.runtimes.slow.options]
BinaryName = "runc"
[proxy_plugins.far]
type = "snapshot"
address = "/run/far.sock"
[timeouts]
"io.containerd.timeout.shim.load" = "9s"
"""
V3 = V2.replace("version = 2", "version = 3").replace(
    f'"{CRI}".containerd]\nsnapshotter = "native"',
    f'"{IMAGES}"]\nsnapshotter = "native"\n[plugins."{RUNTIME}".containerd]',
).replace(f'"{CRI}"', f'"{RUNTIME}"')  # fmt: skip
V4 = V3.replace("version = 3", "version = 4").replace(
    "[grpc]", '[plugins."io.containerd.server.v1.grpc"]'
)


@pytest.mark.parametrize("text", [V2, V3, V4], ids=["2", "3", "4"])
def test_every_version_says_the_same(tmp_path: Path, text: str) -> None:
    config, remarks = from_text(tmp_path, text)
    assert remarks == []
    assert config.address == "/srv/api.sock"
    assert (config.root, config.state) == (Path("/srv/root"), Path("/srv/state"))
    assert (config.uid, config.gid, config.oom_score) == (3, 4, -7)
    assert (config.log_level, config.snapshotter, config.oci_runtime) == ("debug", "native", "runc")
    assert (config.gc_pause_threshold, config.gc_mutation_threshold) == (0.1, 7)
    assert config.gc_startup_delay_s == 61.5
    assert config.attach_within_s == 9.0
    assert config.proxy_plugins == {"far": ProxyPlugin(type="snapshot", address="/run/far.sock")}


def test_proxy_plugins_of_each_type_are_had(tmp_path: Path) -> None:
    text = "version = 2\n" + "".join(
        f"[proxy_plugins.{name}]\ntype = '{kind}'\naddress = '/{name}.sock'\n"
        for name, kind in (("native", "content"), ("far", "diff"))
    )
    config, remarks = from_text(tmp_path, text)
    assert remarks == []
    assert config.proxy_plugins == {
        "native": ProxyPlugin(type="content", address="/native.sock", within_s=10.0),
        "far": ProxyPlugin(type="diff", address="/far.sock", within_s=600.0),
    }
    # None of them is a snapshotter.
    text += f"[plugins.'{CRI}'.containerd]\nsnapshotter = 'far'\n"
    config, remarks = from_text(tmp_path, text)
    assert config.snapshotter == "overlayfs"
    assert "there is no snapshotter 'far'" in remarks[0]


def test_the_first_versions_short_names_are_understood(tmp_path: Path) -> None:
    text = """
        disabled_plugins = ["cri", "diff-service"]
        required_plugins = ["bolt", "aufs"]
        [plugins.scheduler]
        mutation_threshold = 3
    """
    config, remarks = from_text(tmp_path, f"{text}\n[debug]\naddress = '/debug.sock'")
    assert config.gc_mutation_threshold == 3
    assert config.debug_address == "/debug.sock"
    assert remarks == [
        "disabled_plugins: io.containerd.service.v1.diff-service: no part can be left out here",
        "required_plugins: io.containerd.snapshotter.v1.aufs: there is no such part here",
    ]


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config, _ = from_text(
        tmp_path, V2, root="/a", state="/b", address="unix:///c.sock", log_level="fatal"
    )
    assert (config.root, config.state) == (Path("/a"), Path("/b"))
    assert (config.address, config.log_level) == ("/c.sock", "error")


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    config, remarks = daemon_config(tmp_path / "absent.toml", NO_FLAGS)
    assert config.address == "/run/containerd/containerd.sock"
    assert remarks == [f"{tmp_path}/absent.toml: No such file or directory"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1", "/config.toml: unknown key colour"),
        ("version = 2\n[plugins.'a.b']\nc = 1", 'plugins."a.b": c: no effect here'),
        ("version = 2\n[grpc]\ntcp_address = 'x'", "no TCP socket is served"),
        ("version = 2\n[metrics]\naddress = 'x'", "no metrics are served"),
        ("version = 2\n[debug]\naddress = '/x'\nuid = 7", 'server.v1.debug": uid: no effect'),
        (
            "version = 2\n[proxy_plugins.a]\ntype = 'sandbox'\naddress = '/x'",
            "proxy_plugins.a: type 'sandbox': no effect here",
        ),
        (
            "version = 2\n[proxy_plugins.native]\ntype = 'snapshot'\naddress = '/x'",
            "proxy_plugins.native: there is a snapshotter of this name",
        ),
        ("version = 2\nplugin_dir = 'x'", "plugin_dir: no effect here"),
        ("version = 2\n[timeouts]\na = '1s'", "timeouts: a: no effect here"),
        (
            "version = 2\n[plugins.'io.containerd.internal.v1.restart']\ninterval = '1s'",
            'plugins."io.containerd.internal.v1.restart": interval: no effect here',
        ),
        (
            f"version = 2\n[plugins.'{CRI}'.containerd]\nsnapshotter = 'zfs'",
            "there is no snapshotter 'zfs'",
        ),
        (
            f"version = 2\n[plugins.'{CRI}'.containerd]\ndefault_runtime_name = 'x'",
            "containerd.runtimes.x: not there",
        ),
        (
            f"version = 2\n[plugins.'{CRI}'.containerd]\ndefault_runtime_name = 'k'\n"
            f"[plugins.'{CRI}'.containerd.runtimes.k]\nruntime_type = 'io.containerd.kata.v2'",
            "runtime_type 'io.containerd.kata.v2'",
        ),
    ],
)
def test_what_has_no_effect_is_remarked_upon(tmp_path: Path, text: str, said: str) -> None:
    config, remarks = from_text(tmp_path, text)
    assert config.snapshotter == "overlayfs"
    assert len(remarks) == 1
    assert said in remarks[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 5", "equal to or less than `4`, got `5`"),
        ("root = 3", "root must be a string"),
        ("version = true", "version must be a number"),
        ("version =", "failed to unmarshal TOML"),
        ("disabled_plugins = [1]", "disabled_plugins must be a list of strings"),
        ("version = 2\ndisabled_plugins = ['cri']", 'invalid disabled plugin URI "cri"'),
        ("version = 2\n[debug]\nlevel = 'loud'", 'not a valid logrus Level: "loud"'),
        ("version = 2\noom_score = 2000", "oom_score: 2000: "),
        ("version = 2\n[proxy_plugins]\na = 1", "proxy_plugins.a must be a table"),
        ("version = 2\n[proxy_plugins.a]\ntype = 'snapshot'", "proxy_plugins.a.address must be"),
        (
            "version = 2\n[plugins.'io.containerd.gc.v1.scheduler']\nstartup_delay = 'soon'",
            "'soon' is no duration",
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        from_text(tmp_path, text)
    assert said in str(caught.value)
    assert "config.toml" in str(caught.value)


def test_imports_are_laid_over_the_file_in_order(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "config.toml").write_text(
        "version = 2\nroot = '/a'\nstate = '/a'\nimports = ['conf.d/*.toml', '/absent/b.toml']\n"
        "disabled_plugins = ['a.b']\n[plugins.'x.y']\none = [1]\ntwo = true\n"
    )
    (tmp_path / "conf.d/1.toml").write_text(
        "version = 2\nroot = '/b'\nimports = ['../config.toml', 'more.toml']\n"
        "disabled_plugins = ['c.d', 'a.b']\n[plugins.'x.y']\none = [2]\ntwo = false\nthree = 3\n"
    )
    (tmp_path / "conf.d/2.toml").write_text("version = 2\nroot = ''\noom_score = 5\n")
    (tmp_path / "conf.d/more.toml").write_text("version = 2\noom_score = 6\n")
    found = read(tmp_path / "config.toml")
    assert found.values["root"] == "/b"  # what is empty overrides nothing
    assert found.values["state"] == "/a"
    assert found.values["disabled_plugins"] == ["a.b", "c.d"]
    assert found.values["plugins"]["x.y"] == {"one": [2], "two": False, "three": 3}
    assert found.values["oom_score"] == 6  # what an import imports comes after its neighbours
    assert found.remarks == ["/absent/b.toml: No such file or directory"]


def test_an_import_is_of_no_later_version_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("version = 2\nimports = ['b.toml']\n")
    (tmp_path / "b.toml").write_text("version = 3\n")
    with pytest.raises(InvalidArgument, match="version 3 higher than root config version 2"):
        read(tmp_path / "a.toml")


def test_what_is_said_in_the_new_place_is_not_overwritten() -> None:
    new = "io.containerd.server.v1.grpc"
    after = migrated(
        {"version": 3, "plugins": {new: {"address": "/new"}}, "grpc": {"address": "/old"}}
    )
    assert after["plugins"][new] == {"address": "/new"}


def test_a_migration_adds_nothing_to_nothing() -> None:
    assert migrated({"version": 2}) == {"version": 4}


def test_servers_become_plugins_with_their_owners() -> None:
    plugins = migrated(
        {
            "version": 3,
            "grpc": {"address": "/g", "gid": 5, "tcp_address": "h:1", "tcp_tls_ca": "/ca"},
            "debug": {"address": "/d", "uid": 6, "level": "warn"},
            "metrics": {"address": "h:2", "grpc_histogram": True},
        }
    )["plugins"]
    assert plugins == {
        "io.containerd.server.v1.grpc": {"address": "/g", "uid": 0, "gid": 5},
        "io.containerd.server.v1.grpc-tcp": {"address": "h:1", "tls_ca": "/ca"},
        "io.containerd.server.v1.ttrpc": {"address": "/g.ttrpc", "uid": 0, "gid": 5},
        "io.containerd.server.v1.debug": {"address": "/d", "uid": 6, "gid": 0},
        "io.containerd.server.v1.metrics": {"address": "h:2"},
        "io.containerd.metrics.v1.grpc-prometheus": {"grpc_histogram": True},
    }


def test_the_default_document_means_what_it_says(tmp_path: Path) -> None:
    config, remarks = from_text(tmp_path, dumps(default_document()))
    assert config == daemon_config(tmp_path / "absent", NO_FLAGS)[0]
    assert remarks == []


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("1h2m3s", 3723), ("1.5us", 1.5e-6)])
def test_durations_are_gos(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


keys = st.text(st.characters(blacklist_categories=["Cs"]), max_size=5)
leaves = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | keys
    | st.dates()
    | st.times()
    | st.datetimes()
)
values: st.SearchStrategy[Any] = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)


@given(st.dictionaries(keys, values, max_size=4))
def test_what_is_written_reads_the_same(table: dict[str, Any]) -> None:
    assert tomllib.loads(dumps(table)) == table


def test_numbers_that_are_none_are_written_too() -> None:
    assert math.isnan(tomllib.loads(dumps({"a": math.nan}))["a"])


def test_folders_of_registries_are_those_of_pulls(tmp_path: Path) -> None:
    version2 = f'version = 2\n[plugins."{CRI}".registry]\nconfig_path = "/a:/b"\n'
    config, remarks = from_text(tmp_path, version2)
    assert (config.registry_hosts, remarks) == ("/a:/b", [])
    both = f"""
        version = 3
        [plugins."{IMAGES}".registry]
        config_path = "/a"
        [plugins."io.containerd.transfer.v1.local"]
        config_path = "/b"
    """
    assert from_text(tmp_path, both)[0].registry_hosts == "/b"
    with pytest.raises(InvalidArgument, match="absolute"):
        from_text(tmp_path, version2.replace("/a:/b", "a"))
