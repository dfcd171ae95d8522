"""`containerd oci-hook`: a hook of an OCI runtime that fills in arguments and becomes a program.

The runtime gives the container's state on standard input. Arguments and environment may hold what
containerd's template language has for hooks: `{{id}}`, `{{bundle}}`, `{{rootfs}}`, `{{pid}}`,
`{{status}}`, `{{annotation "key"}}`.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

from ...actors.errors import InvalidArgument

ACTION = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
CALL = re.compile(r"-?\s*(\w+)(?:\s+(\"(?:[^\"\\]|\\.)*\"|`[^`]*`))?\s*-?\Z")


def run(words: Sequence[str], state_text: bytes, environ: Mapping[str, str]) -> NoReturn:
    """Become the program that the words name, with what the state says filled in."""
    if not words:
        raise InvalidArgument("oci-hook: a program must be named")
    known = values(state_text)
    filled = [fill(word, known) for word in words]
    env = {key: fill(value, known) for key, value in environ.items()}
    try:
        os.execve(filled[0], filled, env)
    except OSError as error:
        raise InvalidArgument(f"oci-hook: {filled[0]}: {error.strerror}") from error


def values(state_text: bytes) -> Mapping[str, Callable[[str | None], str]]:
    """The functions of the template language for the container that this state is of."""
    state = _object(state_text, "state")
    bundle = str(state.get("bundle", ""))
    file = Path(bundle, "config.json")
    try:
        config = _object(file.read_bytes(), str(file))
    except OSError as error:
        raise InvalidArgument(f"oci-hook: {file}: {error.strerror}") from error
    root = str(cast("Mapping[str, Any]", config.get("root") or {}).get("path", ""))
    annotations = cast("Mapping[str, Any]", state.get("annotations") or {})

    def plain(value: object) -> Callable[[str | None], str]:
        return lambda _: str(value)

    return {
        "id": plain(state.get("id", "")),
        "bundle": plain(bundle),
        "rootfs": plain(os.path.normpath(os.path.join(bundle, root))),
        "pid": plain(state.get("pid", 0)),
        "status": plain(state.get("status", "")),
        "annotation": lambda key: str(annotations.get(key or "", "")),
    }


def fill(text: str, known: Mapping[str, Callable[[str | None], str]]) -> str:
    """The text with every action replaced; InvalidArgument for one that is not understood."""

    def one(found: re.Match[str]) -> str:
        call = CALL.match(found[1].strip())
        function = known.get(call[1]) if call else None
        if call is None or function is None or (call[1] == "annotation") != bool(call[2]):
            raise InvalidArgument(f"oci-hook: {text!r}: {found[0]!r} is not understood")
        return function(_unquoted(call[2]) if call[2] else None)

    return ACTION.sub(one, text)


def _unquoted(literal: str) -> str:
    return literal[1:-1] if literal[0] == "`" else str(json.loads(literal))


def _object(text: bytes, about: str) -> Mapping[str, Any]:
    try:
        # The first value counts, whatever follows, as containerd's decoder has it.
        parsed, _ = json.JSONDecoder().raw_decode(text.decode().lstrip())
    except ValueError as error:
        raise InvalidArgument(f"oci-hook: {about}: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidArgument(f"oci-hook: {about}: not a JSON object")
    return cast("Mapping[str, Any]", parsed)
