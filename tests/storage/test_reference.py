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
        ("[2001:db8::1]/tool", "[2001:db8::1]/tool:latest"),
        ("docker.io/library/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("docker.io/library", "docker.io/library/library:latest"),
        # A first part that is no lower case can only be a host; without a slash nothing is one.
        ("Host/tool", "Host/tool:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("example.org", "docker.io/library/example.org:latest"),
        ("example.org:5000", "docker.io/library/example.org:5000"),
        ("a.b/c.d", "a.b/c.d:latest"),
        ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
        ("xn--n3h.example/x", "xn--n3h.example/x:latest"),
        ("a-b.example/x", "a-b.example/x:latest"),
        ("0/x", "docker.io/0/x:latest"),
        # Between letters: a dot, one or two underscores, any number of dashes.
        ("a.b", "docker.io/library/a.b:latest"),
        ("a_b/c__d/e---f", "docker.io/a_b/c__d/e---f:latest"),
        ("tool:_", "docker.io/library/tool:_"),
        ("tool:A.b-C_1", "docker.io/library/tool:A.b-C_1"),
        ("tool:" + "a" * 128, "docker.io/library/tool:" + "a" * 128),
        ("h.x/" + "a" * 255, "h.x/" + "a" * 255 + ":latest"),
        (f"h.x/a@sha512:{'b' * 128}", f"h.x/a@sha512:{'b' * 128}"),
        ("b" * 64 + ":1", "docker.io/library/" + "b" * 64 + ":1"),
        ("b" * 63, "docker.io/library/" + "b" * 63 + ":latest"),
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
        ("h.x/" + "a" * 256, "longer"),
        ("a" * 248, "longer"),
        ("h" * 256 + ".x/a", "longer"),
        ("user/Tool", "lower case"),
        ("h.x/Tool:1", "lower case"),
        ("a..b", "malformed"),
        ("a___b", "malformed"),
        ("a._b", "malformed"),
        ("a-", "malformed"),
        ("_a", "malformed"),
        ("/a", "malformed"),
        ("a/", "malformed"),
        ("h.x/", "malformed"),
        ("a b", "malformed"),
        ("a\n", "malformed"),
        ("\u00e9", "malformed"),
        ("h_x.org/a", "host"),
        ("h.x:/a", "host"),
        ("h.x:port/a", "host"),
        ("h.x-/a", "host"),
        ("h..x/a", "host"),
        ("[::1/a", "host"),
        ("[fe80::1%eth0]/a", "host"),
        ("https://h.x/a", "host"),
        ("tool:" + "a" * 129, "tag"),
        ("tool:-a", "tag"),
        ("tool:.a", "tag"),
        ("tool:1:2", "tag"),
        ("tool:1\n", "tag"),
        ("tool:\u0663", "tag"),
        ("tool@", "digest"),
        (f"tool@{DIGEST}x", "digest"),
        (f"tool@{DIGEST}@{DIGEST}", "digest"),
        (f"tool@{DIGEST.upper()}", "digest"),
        (f"tool@{DIGEST}:1", "digest"),
        (f"tool@md5:{'a' * 32}", "digest.*algorithm"),
        (f"@{DIGEST}", "malformed"),
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
