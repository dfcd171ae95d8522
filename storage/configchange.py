"""Changes of an image's config, in the words of a Dockerfile: `ENV A=1`, `CMD ["sh"]`.

    CMD, ENTRYPOINT          a JSON list, or a line for /bin/sh
    ENV, LABEL               KEY=VALUE ..., or one KEY VALUE
    EXPOSE, VOLUME           words, or for VOLUME a JSON list
    USER, WORKDIR, STOPSIGNAL, ONBUILD    one value

A new entrypoint drops the command that was meant for the old one, unless a command is among the
changes too, as it does in a Dockerfile.
"""

import json
import posixpath
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ..actors.errors import InvalidArgument

Process = dict[str, Any]


def changed(process: Mapping[str, Any], changes: Sequence[str]) -> Process:
    """A config's `config` object after the changes, in their order. It has been read by
    `read_image_config`, so that what a container is made from is of the right kinds."""
    result = dict(process)
    verbs = [change.strip().partition(" ")[0].upper() for change in changes]
    for verb, change in zip(verbs, changes, strict=True):
        value = change.strip().partition(" ")[2].strip()
        apply = CHANGES.get(verb)
        if apply is None:
            raise InvalidArgument(
                f"change {change[:200]!r} begins with none of {', '.join(CHANGES)}:"
                " invalid argument"
            )
        if not value:
            raise InvalidArgument(f"change {change[:200]!r} has no value: invalid argument")
        try:
            apply(result, value)
        except ValueError as error:
            raise InvalidArgument(f"change {change[:200]!r}: {error}") from error
    if "ENTRYPOINT" in verbs and "CMD" not in verbs:
        result.pop("Cmd", None)
    return result


def _command(key: str) -> Callable[[Process, str], None]:
    def apply(process: Process, value: str) -> None:
        words = _list(value)
        process[key] = ["/bin/sh", "-c", value] if words is None else words

    return apply


def _one(key: str) -> Callable[[Process, str], None]:
    def apply(process: Process, value: str) -> None:
        process[key] = value

    return apply


def _work_dir(process: Process, value: str) -> None:
    process["WorkingDir"] = posixpath.normpath(
        posixpath.join("/", str(process.get("WorkingDir") or "/"), value)
    )


def _env(process: Process, value: str) -> None:
    pairs = _pairs(value)
    env = cast("list[str]", process.get("Env") or [])
    kept = [one for one in env if one.partition("=")[0] not in pairs]
    process["Env"] = [*kept, *(f"{key}={text}" for key, text in pairs.items())]


def _label(process: Process, value: str) -> None:
    process["Labels"] = {**(process.get("Labels") or {}), **_pairs(value)}


def _expose(process: Process, value: str) -> None:
    ports = dict(process.get("ExposedPorts") or {})
    for word in shlex.split(value):
        number, slash, protocol = word.partition("/")
        if not number.isdigit() or not 0 < int(number) < 65536:
            raise ValueError(f"{word[:100]!r} is no port")
        if slash and protocol not in ("tcp", "udp", "sctp"):
            raise ValueError(f"{protocol[:100]!r} is no protocol")
        ports[f"{number}/{protocol or 'tcp'}"] = {}
    process["ExposedPorts"] = ports


def _volume(process: Process, value: str) -> None:
    words = _list(value) or shlex.split(value)
    process["Volumes"] = {**(process.get("Volumes") or {}), **{word: {} for word in words}}


def _on_build(process: Process, value: str) -> None:
    before: object = process.get("OnBuild") or []
    if not isinstance(before, list):
        raise ValueError("the image's own OnBuild is no list")
    process["OnBuild"] = [*cast("list[object]", before), value]


CHANGES: Mapping[str, Callable[[Process, str], None]] = {
    "CMD": _command("Cmd"),
    "ENTRYPOINT": _command("Entrypoint"),
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "STOPSIGNAL": _one("StopSignal"),
    "USER": _one("User"),
    "VOLUME": _volume,
    "WORKDIR": _work_dir,
}


def _pairs(value: str) -> dict[str, str]:
    words = shlex.split(value)
    if "=" not in words[0]:
        # The old form: the rest of the line is the value.
        key, _, rest = value.partition(" ")
        words = [f"{key}={rest.strip()}"] if rest else words
    pairs: dict[str, str] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise ValueError(f"{word[:100]!r} is not KEY=VALUE")
        pairs[key] = text
    return pairs


def _list(value: str) -> list[str] | None:
    """The words of a JSON list; None when it is none."""
    if not value.startswith("["):
        return None
    try:
        words: object = json.loads(value)
    except ValueError:
        return None
    if not isinstance(words, list) or not all(
        isinstance(word, str) for word in cast("list[object]", words)
    ):
        return None
    return cast("list[str]", words)
