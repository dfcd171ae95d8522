import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument
from holdfast.storage.reference import normalize

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.35", "docker.io/library/busybox:1.35"),
        ("user/tool", "docker.io/user/tool:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/user/tool:2", "docker.io/user/tool:2"),
        ("localhost/tool", "localhost/tool:latest"),
        ("localhost:5000/a/b/c:x", "localhost:5000/a/b/c:x"),
        ("example.org/mine:1", "example.org/mine:1"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"busybox:1@{DIGEST}", f"docker.io/library/busybox:1@{DIGEST}"),
        ("[::1]:5000/tool", "[::1]:5000/tool:latest"),
    ],
)
def test_a_reference_gets_its_full_name(written: str, stored: str) -> None:
    assert normalize(written) == stored


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "malformed"),
        ("Busybox", "lower case"),
        ("busybox:", "tag"),
        ("busybox:a b", "tag"),
        ("busybox@sha256:abc", "digest"),
        ("a//b", "malformed"),
        ("-host.org/tool", "host"),
        ("a" * 300, "longer"),
        ("b" * 64, "id"),
    ],
)
def test_what_is_no_reference_is_refused_with_its_reason(written: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        normalize(written)


@given(st.text())
def test_a_full_name_is_its_own_full_name(text: str) -> None:
    try:
        full = normalize(text)
    except InvalidArgument:
        return
    assert normalize(full) == full
