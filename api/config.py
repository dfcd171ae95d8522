"""The daemon's settings: read once, checked once, then one frozen value.

Three layers, later ones win: the defaults here, a TOML file, the command line. An unknown key
in the file is refused by name, so that a typing error is never a silent default.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, cast

from ..actors.errors import InvalidArgument

DEFAULT_CONFIG: Final = Path("/etc/holdfast/config.toml")
DEFAULT_ADDRESS: Final = "/run/holdfast/holdfast.sock"
MOUNTS_NAME: Final = "mounts"
"""Where in the state directory activated mounts stand."""
LOG_LEVELS: Final = ("debug", "info", "warn", "error")
NOT_NEGATIVE: Final = (
    "uid",
    "gid",
    "gc_deletion_threshold",
    "gc_mutation_threshold",
    "gc_schedule_delay_s",
    "gc_startup_delay_s",
    "pull_bytes_per_s",
    "pull_namespace_bytes_per_s",
)
AT_LEAST_ONE: Final = (
    "workers",
    "events_kept",
    "tasks_per_shim",
    "pull_blobs_at_once",
    "pull_ranges_at_once",
)
RANGE_BYTES_MIN: Final = 64 << 10
GC_SHARE_MAX: Final = 0.5
SHARING: Final = ("shared", "isolated")
# How long one call may take, where nothing is said, of each type of proxy plugin.
PROXY_WITHIN_S: Final[Mapping[str, float]] = {"snapshot": 60.0, "content": 10.0, "diff": 600.0}
PROXY_TYPES: Final = tuple(PROXY_WITHIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlugin:
    """A part that another process serves, as in containerd's `[proxy_plugins.NAME]`."""

    type: str
    """`snapshot`: a snapshotter by containerd.services.snapshots.v1; `content`: a source of blobs
    by containerd.services.content.v1; `diff`: a differ by containerd.services.diff.v1."""
    address: str
    """Its unix socket."""
    snapshotter: str = ""
    """By which name the other side knows a snapshotter; that of the plugin unless given."""
    media_types: Sequence[str] = ()
    """For which media types a differ is asked before our own."""
    within_s: float = 60.0
    """How long one call may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting of a host, with its default in sight."""

    root: Path = Path("/var/lib/holdfast")
    """What must outlive a reboot: database, blobs, snapshots. Made with mode 0700."""
    state: Path = Path("/run/holdfast")
    """What a reboot may take: bundles, sockets. Made with mode 0700."""
    address: str = DEFAULT_ADDRESS
    """The API's unix socket, mode 0660. ttrpc listens on the same path with `.ttrpc`."""
    ttrpc_address: str = ""
    """The unix socket for shims; empty: the address with `.ttrpc`."""
    debug_address: str = ""
    """A further unix socket, which tells what the daemon is doing: `ctr pprof`. Empty: none."""
    uid: int = 0
    """Who owns the sockets, and which group."""
    gid: int = 0
    log_level: str = "info"
    oci_runtime: str = ""
    """The program for containers that name none; empty: crun, or runc where there is no crun."""
    opt: Path = Path("/opt/holdfast")
    """Where images install programs, as by `ctr install`; its `bin` is searched first."""
    snapshotter: str = "overlayfs"
    """Which snapshotter serves requests that name none."""
    workers: int = 2
    """Worker processes that mount, unpack and remove, one job each."""
    events_kept: int = 100_000
    """Events kept for replay; older ones leave an explicit gap."""
    tasks_per_shim: int = 1
    """How many tasks may share a shim: less memory, but more tasks wait when one is replaced."""
    proxy_plugins: Mapping[str, ProxyPlugin] = field(default_factory=dict[str, ProxyPlugin])
    """Parts that other processes serve, by name: `[proxy_plugins.NAME]`."""
    lend_snapshots: str = ""
    """A further unix socket, where another containerd finds the snapshotter as a proxy plugin."""
    lend_content: str = ""
    """The same for the content store; both may be lent on one socket."""
    log_binaries: Path = Path("/usr/local/lib/holdfast/loggers")
    """The folder whose programs clients may name by `binary://`; it need not exist."""
    registry_hosts: str = "/etc/holdfast/certs.d:/etc/containerd/certs.d:/etc/docker/certs.d"
    """Folders that tell of registries where a request names none, separated by colons: the first
    that knows a registry counts."""
    content_sharing: str = "shared"
    """Whether a namespace has a blob of another for the asking, or only of one that is labelled
    `containerd.io/namespace.shareable=true` (`isolated`)."""
    pull_blobs_at_once: int = 3
    """How many blobs of an image come from a registry at a time."""
    pull_ranges_at_once: int = 3
    """Through how many connections a large blob comes, where the server gives ranges."""
    pull_range_bytes: int = 16 << 20
    """How large such a range is; a blob below twice as much comes through one connection."""
    pull_stall_s: float = 30.0
    """A connection that brings nothing for so long is dropped, and the rest asked for again."""
    pull_bytes_per_s: int = 0
    """What one pull may bring, in bytes a second; 0: as much as comes."""
    pull_namespace_bytes_per_s: int = 0
    """The same for all pulls of a namespace together."""
    image_verifier_bin_dir: str = ""
    """The folder whose programs judge an image before it is pulled; empty: none are asked."""
    image_verifiers_max: int = 10
    """So many of them are asked, the first by name; below 0: all."""
    image_verifier_within_s: float = 10.0
    """How long one of them may take."""
    gc_pause_threshold: float = 0.02
    """Collecting garbage may take this share of the time, at most a half."""
    gc_deletion_threshold: int = 0
    """So many deletions since the last collection make the next come at once; 0: it waits for
    its share of the time."""
    gc_mutation_threshold: int = 100
    """So many commits since the last collection make one due without a deletion; 0: never."""
    gc_schedule_delay_s: float = 0.0
    """How much longer a collection that is due waits, to collect more at once."""
    gc_startup_delay_s: float = 0.1
    """How long after the start the first collection comes."""
    shutdown_within_s: float = 10.0
    """How long an orderly end may take. Containers run on."""
    attach_within_s: float = 5.0
    """How long a shim of an earlier daemon may take to answer before another replaces it."""
    oom_score: int = 0
    """oom_score_adj of the daemon and what it starts; 0: as it is."""


def made(settings: Mapping[str, object], source: str, base: Config | None = None) -> Config:
    """A base, or the defaults, changed by settings that are not None, each checked."""
    given = {key: value for key, value in settings.items() if value is not None}
    return replace(base or Config(), **_checked(given, source))


def load(path: Path | None, overrides: Mapping[str, object]) -> Config:
    """The defaults, changed by the file, changed by the overrides that are not None.

    `path` None means DEFAULT_CONFIG, which may be absent; a named file may not.
    Raises InvalidArgument naming the file and the key.
    """
    config = Config()
    source = path if path is not None else DEFAULT_CONFIG
    if path is not None or source.exists():
        config = made(_read(source), str(source), config)
    return made(overrides, "command line", config)


def _read(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidArgument(f"config {path}: {error}") from error


def _checked(settings: Mapping[str, object], source: str) -> dict[str, Any]:
    """The settings in the types of Config; refuses what is unknown or of another type."""
    defaults = Config()
    known: dict[str, object] = {item.name: getattr(defaults, item.name) for item in fields(Config)}
    checked: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise InvalidArgument(f"{source}: unknown setting {key!r}")
        if key == "proxy_plugins":
            checked[key] = _proxy_plugins(value, source)
        else:
            checked[key] = _as(type(known[key]), key, value, source)
    if checked.get("log_level", "info") not in LOG_LEVELS:
        raise InvalidArgument(f"{source}: log_level is one of {', '.join(LOG_LEVELS)}")
    for key in AT_LEAST_ONE:
        if checked.get(key, 1) < 1:
            raise InvalidArgument(f"{source}: {key} must be at least 1")
    for folder in filter(None, checked.get("registry_hosts", "").split(":")):
        if not Path(folder).is_absolute():
            raise InvalidArgument(
                f"{source}: registry_hosts must be absolute paths, not {folder!r}"
            )
    if checked.get("content_sharing", "shared") not in SHARING:
        raise InvalidArgument(f"{source}: content_sharing is one of {', '.join(SHARING)}")
    if not 0 <= checked.get("gc_pause_threshold", 0.0) <= GC_SHARE_MAX:
        raise InvalidArgument(f"{source}: gc_pause_threshold must be between 0 and {GC_SHARE_MAX}")
    for key in NOT_NEGATIVE:
        if not 0 <= checked.get(key, 0) < math.inf:
            raise InvalidArgument(f"{source}: {key} must not be negative, nor endless")
    for key in (
        "attach_within_s",
        "shutdown_within_s",
        "pull_stall_s",
        "image_verifier_within_s",
    ):
        if checked.get(key, 1.0) <= 0:
            raise InvalidArgument(f"{source}: {key} must be more than 0")
    if checked.get("pull_range_bytes", RANGE_BYTES_MIN) < RANGE_BYTES_MIN:
        raise InvalidArgument(f"{source}: pull_range_bytes must be at least {RANGE_BYTES_MIN}")
    if not -1000 <= checked.get("oom_score", 0) <= 1000:
        raise InvalidArgument(f"{source}: oom_score must be between -1000 and 1000")
    return checked


def _proxy_plugins(value: object, source: str) -> Mapping[str, ProxyPlugin]:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{source}: proxy_plugins must be a table, not {value!r}")
    return {
        str(name): _proxy_plugin(f"proxy_plugins.{name}", table, source)
        for name, table in cast("Mapping[object, object]", value).items()
    }


def _proxy_plugin(name: str, table: object, source: str) -> ProxyPlugin:
    if isinstance(table, ProxyPlugin):
        return table
    if not isinstance(table, Mapping):
        raise InvalidArgument(f"{source}: {name} must be a table, not {table!r}")
    given = dict(cast("Mapping[str, object]", table))
    kind = _as(str, f"{name}.type", given.pop("type", ""), source)
    address = _as(str, f"{name}.address", given.pop("address", ""), source)
    if kind not in PROXY_TYPES:
        raise InvalidArgument(f"{source}: {name}.type is one of {', '.join(PROXY_TYPES)}")
    within_s = _as(float, f"{name}.within_s", given.pop("within_s", PROXY_WITHIN_S[kind]), source)
    snapshotter = ""
    media_types: Sequence[str] = ()
    if kind == "snapshot":
        snapshotter = _as(str, f"{name}.snapshotter", given.pop("snapshotter", ""), source)
    if kind == "diff":
        media_types = _words(f"{name}.media_types", given.pop("media_types", []), source)
    for key in given:
        raise InvalidArgument(f"{source}: unknown setting {f'{name}.{key}'!r}")
    if not Path(address.removeprefix("unix://")).is_absolute():
        raise InvalidArgument(f"{source}: {name}.address must be the path of a socket")
    if not 0 < within_s < math.inf:
        raise InvalidArgument(f"{source}: {name}.within_s must be above 0, and not endless")
    return ProxyPlugin(
        type=kind,
        address=address,
        snapshotter=snapshotter,
        media_types=media_types,
        within_s=within_s,
    )


def _words(key: str, value: object, source: str) -> Sequence[str]:
    if not isinstance(value, list | tuple):
        raise InvalidArgument(f"{source}: {key} must be a list of strings, not {value!r}")
    words = cast("Sequence[object]", value)
    return tuple(_as(str, key, word, source) for word in words)


def _as(kind: type, key: str, value: object, source: str) -> Any:
    if issubclass(kind, Path) and isinstance(value, str | Path):
        path = Path(value)
        if not path.is_absolute():
            raise InvalidArgument(f"{source}: {key} must be an absolute path, not {value!r}")
        return path
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    wanted = "string" if issubclass(kind, Path) else kind.__name__
    raise InvalidArgument(f"{source}: {key} must be a {wanted}, not {value!r}")
