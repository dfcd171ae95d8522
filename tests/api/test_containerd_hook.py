"""The template language of `containerd oci-hook`."""

import json
from pathlib import Path

import pytest

from holdfast.actors.errors import InvalidArgument
from holdfast.api.containerd.hook import fill, run, values


@pytest.fixture
def state(tmp_path: Path) -> bytes:
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "rootfs"}}))
    told = {
        "id": "c1",
        "bundle": str(tmp_path),
        "pid": 42,
        "status": "created",
        "annotations": {"a b": "x}} y"},
    }
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("{{id}}", "c1"),
        ("--pid={{ pid }},{{status}}", "--pid=42,created"),
        ("{{rootfs}}", "{bundle}/rootfs"),
        ("{{bundle}}", "{bundle}"),
        ('{{annotation "a b"}}', "x}} y"),
        ("{{annotation `a b`}}", "x}} y"),
        ('{{annotation "none"}}.', "."),
        ("no action {", "no action {"),
    ],
)
def test_an_action_is_replaced(text: str, filled: str, state: bytes, tmp_path: Path) -> None:
    assert fill(text, values(state)) == filled.replace("{bundle}", str(tmp_path))


@pytest.mark.parametrize("text", ["{{nothing}}", "{{id | len}}", "{{annotation}}", '{{id "x"}}'])
def test_what_is_not_understood_is_refused(text: str, state: bytes) -> None:
    with pytest.raises(InvalidArgument, match="is not understood"):
        fill(text, values(state))


def test_a_root_that_is_absolute_stays_so(state: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"root": {"path": "/srv/root"}}))
    assert fill("{{rootfs}}", values(state)) == "/srv/root"


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'{"bundle": "/no/such"}', b"\xff"])
def test_a_state_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="oci-hook: "):
        run(["true"], text, {})


def test_a_hook_without_a_program_is_refused(state: bytes) -> None:
    with pytest.raises(InvalidArgument, match="a program must be named"):
        run([], state, {})
    with pytest.raises(InvalidArgument, match="/no/such: No such file"):
        run(["/no/such"], state, {})
