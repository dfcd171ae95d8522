"""Which hosts are asked, as folders say; and what TLS says, of real registries."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from clients import blob, fetched, opened_registry, pieces_of
from loopback import Answer, in_turn, loopback, manifest
from servers import Server, certify, registry

from holdfast.actors.errors import InvalidArgument, Refusal, Unavailable, Unknown
from holdfast.api.host import embedded, open_host
from holdfast.runtime.vault import teardown
from holdfast.storage.registry.auth import no_credentials
from holdfast.storage.registry.hosts import (
    CAPABILITIES,
    Host,
    hosts_of,
    is_loopback,
    origin_of,
    parse_remote,
    plain_host,
    split_folders,
)
from holdfast.storage.registry.hostsfile import read_folder
from holdfast.storage.registry.retry import Patience
from holdfast.storage.transfer import ImageStore, Progress, RegistryPlace

REMOTE = parse_remote("team.example:5000/tool:1")
OWN = plain_host("team.example:5000")


def wrote(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(text)
    return folder


def hosts(folder: Path, text: str) -> list[Host]:
    return list(read_folder(wrote(folder, text), OWN, known_scheme=False))


def test_a_file_is_read_in_its_order_with_all_that_it_may_say(tmp_path: Path) -> None:
    found = hosts(
        tmp_path,
        """
        server = "https://upstream.example/v2"
        ca = ["/abs/one.pem", "two.pem"]
        client = "both.pem"
        dial_timeout = "1m30s"
        read_timeout = "1.5s"
        unknown = { what = "ever" }

        [host."https://z.example"]
        capabilities = ["pull", "Resolve", "referrers"]
        skip_verify = true
        client = [["c.cert", "c.key"], ["both.pem", ""]]

        [host."http://a.example:8080/prefix/"]
        client = ["one.pem", "two.pem"]
        ca = "ca.pem"
        proxy = "http://proxy.example:3128/"

        [host."b.example"]
        override_path = true
        dial_timeout = "0"

        [host."b.example".header]
        x-one = "a"
        x-two = ["b", "c"]
        """,
    )
    z, a, b, server = found
    assert z == Host(
        base="https://z.example/v2",
        capabilities=frozenset({"pull", "resolve", "referrers"}),
        skip_verify=True,
        authorities=[],
        certificates=[
            (tmp_path / "c.cert", tmp_path / "c.key"),
            (tmp_path / "both.pem", None),
        ],
    )
    assert a.base == "http://a.example:8080/prefix/v2"
    assert a.capabilities == CAPABILITIES
    assert a.certificates == [(tmp_path / "one.pem", None), (tmp_path / "two.pem", None)]
    assert a.authorities == [tmp_path / "ca.pem"]
    assert a.proxy == "http://proxy.example:3128/"
    assert b.base == "https://b.example"
    assert b.headers == {"x-one": "a", "x-two": "b, c"}
    assert b.connect_within_s is None
    assert server.base == "https://upstream.example/v2"
    assert server.authorities == [Path("/abs/one.pem"), tmp_path / "two.pem"]
    assert server.certificates == [(tmp_path / "both.pem", None)]
    assert (server.connect_within_s, server.silent_within_s) == (90.0, 1.5)


def test_without_a_server_the_references_host_is_last_with_what_the_top_says(
    tmp_path: Path,
) -> None:
    mirror, own = hosts(tmp_path, 'skip_verify = true\n[host."https://mirror.example"]')
    assert mirror.base == "https://mirror.example/v2"
    assert not mirror.skip_verify
    assert own.base == "https://team.example:5000/v2"
    assert own.skip_verify
    (hub,) = read_folder(wrote(tmp_path, ""), plain_host("docker.io"), known_scheme=False)
    assert hub.base == "https://registry-1.docker.io/v2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = 1", "server is no string"),
        ("server = [", "hosts.toml: "),
        ('server = "ftp://x"', "'ftp://x' is no server"),
        ('server = "https://"', "is no server"),
        ('server = "https://x:99999"', "is no server"),
        ('server = "https://u:hidden@x"', "'x' is no server"),
        ('server = "https://x?a=b"', "is no server"),
        ("host = 1", "host is no table"),
        ("[host]\nx = 1", "host 'x': is no table"),
        ('[host.x]\ncapabilities = ["fly", "pull"]', "host 'x': unknown capabilities fly"),
        ("capabilities = [1]", "capabilities is a string or a list of strings"),
        ("ca = 1", "ca is a string or a list of strings"),
        ("ca = [[]]", "ca is a string or a list of strings"),
        ('client = [["a", "b", "c"]]', "client is a file, files, or pairs"),
        ("client = 1", "client is a file, files, or pairs"),
        ('skip_verify = "yes"', "skip_verify is true or false"),
        ("header = 1", "header is no table"),
        ("[header]\nx = 1", "header 'x' is no text"),
        ('[header]\nx = "a\\r\\nhidden: b"', "header 'x' is no text"),
        ('[header]\n"a b" = "x"', "header 'a b' is no text"),
        ('dial_timeout = "5"', "dial_timeout = '5' is no duration"),
        ('dial_timeout = "-1s"', "is no duration"),
        ("dial_timeout = 5", "dial_timeout is no string"),
        ('proxy = "socks5://hidden"', "proxy is the address"),
        ('proxy = "http://u:hidden@x/path"', "proxy is the address"),
        ("#" * (1 << 21), "more than 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_key(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        hosts(tmp_path, text)
    assert str(refused.value).startswith(f"{tmp_path}/hosts.toml: ")
    assert said in str(refused.value)
    assert "hidden" not in str(refused.value)


@given(
    st.dictionaries(
        st.sampled_from(["server", "host", "ca", "client", "header", "proxy"]),
        st.recursive(
            st.text() | st.integers() | st.booleans(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
    )
)
def test_no_file_is_a_fault(table: dict[str, object]) -> None:
    from holdfast.storage.registry import hostsfile

    reader = hostsfile._Table(Path("/x/hosts.toml"), table, "")  # pyright: ignore[reportPrivateUsage]
    try:
        hostsfile._host(reader, reader.text("server"), OWN)  # pyright: ignore[reportPrivateUsage]
    except InvalidArgument:
        pass


def test_a_hosts_folder_has_one_of_several_names(tmp_path: Path) -> None:
    def asked() -> str:
        return hosts_of(REMOTE, [tmp_path / "none", tmp_path])[0].authority

    assert asked() == "team.example:5000"
    wrote(tmp_path, 'server = "https://top"')
    assert asked() == "top"
    wrote(tmp_path / "_default", 'server = "https://default"')
    assert asked() == "default"
    wrote(tmp_path / "team.example:5000", 'server = "https://colon"')
    assert asked() == "colon"
    wrote(tmp_path / "team.example_5000_", 'server = "https://underscore"')
    assert asked() == "underscore"
    # The first folder that knows the host counts, by whatever name.
    wrote(tmp_path / "none/_default", 'server = "https://earlier"')
    assert asked() == "earlier"


def test_a_folder_without_a_file_is_one_of_certificates(tmp_path: Path) -> None:
    own = tmp_path / "team.example:5000"
    own.mkdir()
    for name in ("b.crt", "a.crt", "x.cert", "x.key", "y.cert", "z.key", "readme"):
        (own / name).touch()
    (host,) = hosts_of(REMOTE, [tmp_path])
    assert host.authorities == [own / "a.crt", own / "b.crt"]
    assert host.certificates == [(own / "x.cert", own / "x.key"), (own / "y.cert", None)]
    assert host.base == "https://team.example:5000/v2"


@pytest.mark.parametrize(
    ("reference", "scheme", "base"),
    [
        ("busybox", "", "https://registry-1.docker.io/v2"),
        ("localhost:5000/x", "", "http://localhost:5000/v2"),
        ("localhost:443/x", "", "https://localhost:443/v2"),
        ("127.0.0.1:5000/x", "", "http://127.0.0.1:5000/v2"),
        ("[::1]:5000/x", "", "http://[::1]:5000/v2"),
        ("example.org/x", "", "https://example.org/v2"),
        ("example.org/x", "http", "http://example.org/v2"),
        ("localhost:5000/x", "https", "https://localhost:5000/v2"),
    ],
)
def test_a_host_without_a_folder_is_asked_itself(reference: str, scheme: str, base: str) -> None:
    assert [one.base for one in hosts_of(parse_remote(reference), [], scheme)] == [base]


def test_a_mirror_is_another_host_than_the_references() -> None:
    assert not plain_host("docker.io").stands_in_for("docker.io")
    assert not Host(base="https://docker.io/v2").stands_in_for("docker.io")
    assert Host(base="https://mirror.example/v2").stands_in_for("docker.io")
    assert Host(base="https://team.example/v2").stands_in_for("team.example:5000")


def test_origins_are_equal_where_scheme_host_and_port_are() -> None:
    assert origin_of("https://a.example/x") == origin_of("https://A.example:443")
    assert origin_of("http://a.example") != origin_of("https://a.example")
    assert origin_of("https://a.example:444") != origin_of("https://a.example")
    for text in ("", "x", "ftp://a", "http://", "http://a:b", "http://[::1"):
        with pytest.raises(InvalidArgument):
            origin_of(text)


@pytest.mark.parametrize("name", ["[::::::]", "h.x:99999", "[1]:5000"])
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is no address of http"):
        hosts_of(parse_remote(f"{name}/tool"), [])


async def test_a_name_that_cannot_be_looked_up_is_told_at_once() -> None:
    patience = Patience(first_s=60)
    async with opened_registry(f"{'a' * 64}.example/tool", patience=patience) as client:
        with trio.fail_after(20), pytest.raises(Unavailable, match="no address of http"):
            await client.resolve()


def test_the_loopback_is_known_by_name_and_address() -> None:
    assert all(
        map(is_loopback, ("localhost", "localhost:1", "127.0.0.1:1", "127.9.9.9", "[::1]:1"))
    )
    assert not any(map(is_loopback, ("example.org", "10.0.0.1", "localhost.example:1")))


def test_folders_are_separated_by_colons(tmp_path: Path) -> None:
    assert split_folders("/a:/b::/c") == [Path("/a"), Path("/b"), Path("/c")]
    assert split_folders("") == []
    odd = tmp_path / "with:colon"
    odd.mkdir()
    assert split_folders(str(odd)) == [odd]


async def test_a_daemon_asks_the_hosts_of_its_setting_where_a_request_names_none(
    tmp_path: Path,
) -> None:
    place = RegistryPlace(reference="team.example:5000/tool:1")
    with loopback(in_turn(manifest())) as server, loopback(in_turn(manifest())) as other:
        wrote(tmp_path / "two/team.example:5000", f'server = "{server.url}"')
        wrote(tmp_path / "three/_default", f'server = "{other.url}"')
        setting = f"{tmp_path}/one:{tmp_path}/two:{tmp_path}/three"
        config = embedded(tmp_path / "root", tmp_path / "state", {"registry_hosts": setting})
        async with open_host(config) as host:

            async def pull(place: RegistryPlace) -> None:
                async def report(_: Progress) -> None:
                    await trio.lowlevel.checkpoint()

                store = ImageStore(name="tool:1")
                with suppress(Refusal):  # it has no config
                    await host.transfers.pull("default", place, store, no_credentials, report)

            await pull(place)
            assert server.seen
            assert not other.seen
            await pull(replace(place, hosts=tmp_path / "three"))
            assert other.seen
    teardown(str(tmp_path / "state"))


# -- TLS


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A registry that speaks TLS with a certificate of its own."""
    with registry(tmp_path_factory.mktemp("secured") / "r", tls=True) as server:
        yield server


def settings(folder: Path, server: Server, *lines: str) -> Path:
    wrote(folder / server.authority, "\n".join([f'server = "https://{server.authority}"', *lines]))
    return folder


async def roundtrip(server: Server, folder: Path) -> None:
    async with opened_registry(f"{server.authority}/tls:1", folders=[folder]) as client:
        await client.put_blob(blob(b"x"), pieces_of(b"x"))
        assert await fetched(client, blob(b"x")) == b"x"


async def test_an_authority_of_ones_own_is_trusted_by_file_and_by_folder(
    secured: Server, tmp_path: Path
) -> None:
    await roundtrip(secured, settings(tmp_path / "one", secured, f'ca = "{secured.certificate}"'))
    await roundtrip(secured, settings(tmp_path / "two", secured, "skip_verify = true"))
    own = tmp_path / "three" / secured.authority
    own.mkdir(parents=True)
    (own / "ca.crt").write_bytes(secured.certificate.read_bytes())
    await roundtrip(secured, tmp_path / "three")


async def test_who_is_not_trusted_is_told_with_what_to_do(secured: Server, tmp_path: Path) -> None:
    folder = settings(tmp_path, secured)
    with pytest.raises(Unavailable) as said:
        await roundtrip(secured, folder)
    assert "the certificate of localhost is signed by itself alone" in str(said.value)
    assert "as `ca` in the host's hosts.toml" in str(said.value)


async def test_a_certificate_of_ours_is_shown_to_who_wants_it(tmp_path: Path) -> None:
    shown, stranger = tmp_path / "us.cert", tmp_path / "them.cert"
    for one in (shown, stranger):
        certify(one, one.with_suffix(".key"), name=one.stem)
    both = tmp_path / "both.pem"
    both.write_bytes(shown.read_bytes() + shown.with_suffix(".key").read_bytes())
    with registry(tmp_path / "r", tls=True, client_ca=shown) as server:
        ca = f'ca = "{server.certificate}"'
        own = tmp_path / "docker" / server.authority
        own.mkdir(parents=True)
        for name, source in (
            ("ca.crt", server.certificate),
            ("us.cert", shown),
            ("us.key", shown.with_suffix(".key")),
        ):
            (own / name).write_bytes(source.read_bytes())
        await roundtrip(server, tmp_path / "docker")
        pair = f'client = [["{shown}", "{shown.with_suffix(".key")}"]]'
        for number, client in enumerate((pair, f'client = "{both}"', f'client = ["{both}"]')):
            await roundtrip(server, settings(tmp_path / str(number), server, ca, client))
        with pytest.raises(Unavailable, match=r"misses a certificate of ours.*`client`"):
            await roundtrip(server, settings(tmp_path / "without", server, ca))
        wrong = f'client = [["{stranger}", "{stranger.with_suffix(".key")}"]]'
        with pytest.raises(Unavailable, match=r"our.*see `client` in the host's hosts\.toml"):
            await roundtrip(server, settings(tmp_path / "wrong", server, ca, wrong))
        for bad, why in (
            (f'client = "{shown}"', "which holds no other"),
            (f'client = [["{shown}", "{stranger.with_suffix(".key")}"]]', "MISMATCH"),
            ('client = "none.pem"', "No such file"),
            (f'ca = "{shown.with_suffix(".key")}"', "certificate authority"),
        ):
            lines = [bad] if bad.startswith("ca") else [ca, bad]
            with pytest.raises(InvalidArgument, match=why):
                await roundtrip(server, settings(tmp_path / "bad", server, *lines))


def certify_long_ago(certificate: Path, key: Path) -> None:
    """A certificate whose time is over."""
    base = certificate.parent
    request, settings = base / "request", base / "ca.conf"
    settings.write_text(
        f"[ca]\ndefault_ca=x\n[x]\ndatabase={base}/index\nnew_certs_dir={base}\n"
        "rand_serial=yes\ndefault_md=sha256\npolicy=p\ncopy_extensions=copy\n[p]\ncommonName=supplied\n"
    )
    (base / "index").touch()
    new = f"openssl req -new -newkey rsa:2048 -nodes -subj /CN=localhost -keyout {key}"
    sign = f"openssl ca -batch -selfsign -notext -config {settings} -keyfile {key}"
    times = "-startdate 20200101000000Z -enddate 20200102000000Z"
    for command in (
        f"{new} -addext subjectAltName=DNS:localhost -out {request}",
        f"{sign} {times} -in {request} -out {certificate}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)


def certify_another(certificate: Path, key: Path) -> None:
    certify(certificate, key, name="other.example")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (certify_another, r"is for other names .*: use a name that the certificate has"),
        (certify_long_ago, r"has expired .*clock"),
    ],
)
async def test_a_wrong_certificate_is_told_by_what_is_wrong(
    tmp_path: Path, make: Callable[[Path, Path], None], said: str
) -> None:
    pair = tmp_path / "cert.pem", tmp_path / "key.pem"
    make(*pair)
    with loopback(in_turn(manifest()), pair=pair) as server:
        folder = wrote(
            tmp_path / "hosts" / server.authority,
            f'server = "https://{server.authority}"\nca = "{pair[0]}"',
        ).parent
        async with opened_registry(f"{server.authority}/tool:1", folders=[folder]) as client:
            with pytest.raises(Unavailable, match=said):
                await client.resolve()
        # What will not pass is not tried again.
        assert not server.seen


async def test_tls_and_plain_http_that_meet_are_told_apart(secured: Server, tmp_path: Path) -> None:
    async with opened_registry(f"{secured.authority}/tool:1") as client:
        with pytest.raises(Unknown, match=r"https:// in hosts\.toml"):
            await client.resolve()
    with loopback(in_turn(Answer())) as server:
        folder = wrote(tmp_path / server.authority, f'server = "https://{server.authority}"').parent
        async with opened_registry(f"{server.authority}/tool:1", folders=[folder]) as client:
            with pytest.raises(Unavailable, match=r"does not speak TLS there .*http://"):
                await client.resolve()
