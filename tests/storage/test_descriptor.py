import json

import pytest

from holdfast.actors.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from holdfast.storage.descriptor import (
    DOCKER_LAYER_GZIP,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    children,
    describe,
    gc_labels,
    read_index,
    read_manifest,
)
from holdfast.storage.digest import check_digest, digest_of, fault_of_digest, parse_digest
from holdfast.storage.document import Document, parse_objects
from holdfast.storage.image_config import chain_ids, offered_labels, read_image_config
from holdfast.storage.platform import Platform, choose, normalize, rank

EMPTY = digest_of(b"")


def platform(text: str) -> Platform:
    parts = [*text.split("/"), ""]
    return Platform(os=parts[0], architecture=parts[1], variant=parts[2])


def test_a_descriptor_is_written_as_it_was_read() -> None:
    value: dict[str, object] = {
        "mediaType": OCI_MANIFEST,
        "digest": EMPTY,
        "size": 3,
        "urls": ["https://example.com"],
        "annotations": {"a": "b"},
        "platform": {
            "architecture": "arm",
            "os": "linux",
            "os.version": "1",
            "os.features": ["x"],
            "variant": "v7",
        },
    }
    assert Descriptor.from_document(Document(value, "d")).to_json() == value


def test_children_become_labels() -> None:
    layers = [describe(b"1", DOCKER_LAYER_GZIP), describe(b"2", OCI_LAYER_ZSTD)]
    config, odd = describe(b"c", OCI_CONFIG), describe(b"o", "text/plain")
    labels = gc_labels([config, *layers, odd, describe(b"m", OCI_MANIFEST)])
    assert labels == {
        "containerd.io/gc.ref.content.config": config.digest,
        "containerd.io/gc.ref.content.l.0": layers[0].digest,
        "containerd.io/gc.ref.content.l.1": layers[1].digest,
        "containerd.io/gc.ref.content.0": odd.digest,
        "containerd.io/gc.ref.content.m.0": digest_of(b"m"),
    }
    raw = json.dumps({"config": config.to_json(), "layers": [layers[0].to_json()]}).encode()
    assert children(raw, OCI_MANIFEST, "m") == (config, layers[0])
    assert children(raw, OCI_CONFIG, "m") == ()
    assert children(b'{"manifests":null}', OCI_INDEX, "i") == ()


@pytest.mark.parametrize(
    ("raw", "refusal"),
    [
        (b"[]", InvalidArgument),
        (b"{", InvalidArgument),
        (b"\xff", InvalidArgument),
        (b'{"manifests":{}}', InvalidArgument),
        (b'{"manifests":[1]}', InvalidArgument),
        (b'{"manifests":[{"digest":1}]}', InvalidArgument),
        (b'{"manifests":[{"digest":"sha256:' + b"0" * 64 + b'","size":-1}]}', InvalidArgument),
        (b'{"manifests":[{"digest":"sha256:' + b"0" * 64 + b'","size":1.5}]}', InvalidArgument),
        (
            b'{"manifests":[{"digest":"sha256:' + b"0" * 64 + b'","annotations":{"a":1}}]}',
            InvalidArgument,
        ),
        (b'{"manifests":[' + b"{}," * 70000 + b"{}]}", ResourceExhausted),
        (b" " * (9 << 20), ResourceExhausted),
        (b'{"manifests":[{}],"layers":[{}]}', FailedPrecondition),
        (b'{"schemaVersion":1,"fsLayers":[{}]}', FailedPrecondition),
    ],
)
def test_a_malformed_index_is_refused(raw: bytes, refusal: type[Exception]) -> None:
    with pytest.raises(refusal):
        read_index(raw, "index")


def test_a_manifest_needs_a_config() -> None:
    with pytest.raises(InvalidArgument):
        read_manifest(b"{}", "m")


def test_documents_are_typed() -> None:
    document = Document.parse(b'{"t":"x","n":1,"l":["a"],"m":{"k":"v"},"x":null}', "d")
    assert document.keys("m") == ("k",)
    assert document.child("m").text("k") == "v"
    assert (document.text("x"), document.number("x"), document.texts("x")) == ("", 0, ())
    for ask in (
        lambda: document.text("n"),
        lambda: document.number("t"),
        lambda: document.texts("m"),
        lambda: document.text_map("l"),
        lambda: Document.parse(b'{"l":[1]}', "d").texts("l"),
        lambda: parse_objects(b"[1]", "d"),
    ):
        with pytest.raises(InvalidArgument):
            ask()
    wide = json.dumps({"m": {str(n): "" for n in range(70000)}}).encode()
    with pytest.raises(ResourceExhausted):
        Document.parse(wide, "d").keys("m")


@pytest.mark.parametrize(
    ("digest", "fault"),
    [
        ("", "invalid checksum digest format"),
        ("sha256", "invalid checksum digest format"),
        ("sha256:", "invalid checksum digest format"),
        (":abc", "invalid checksum digest format"),
        ("sha256:ab", "invalid checksum digest length"),
        ("md5:ab", "unsupported digest algorithm"),
        ("m/d5:ab", "invalid checksum digest format"),
        ("sha256:" + "G" * 64, "invalid checksum digest format"),
        ("sha256:" + "A" * 64, "invalid checksum digest format"),
        ("sha256:" + "../" * 21 + "a", "invalid checksum digest format"),
        (EMPTY, ""),
        (digest_of(b"", "sha512"), ""),
    ],
)
def test_digests_are_checked(digest: str, fault: str) -> None:
    assert fault_of_digest(digest) == fault
    if fault:
        with pytest.raises(InvalidArgument, match="failed validation"):
            parse_digest(digest)
        with pytest.raises(InvalidArgument, match=fault):
            check_digest(digest)
    else:
        check_digest(parse_digest(digest))


def test_platforms_have_one_spelling() -> None:
    assert str(normalize(platform("Linux/x86_64/v1"))) == "linux/amd64"
    assert str(normalize(platform("linux/aarch64/8"))) == "linux/arm64"
    assert str(normalize(platform("linux/armhf"))) == "linux/arm/v7"
    assert str(normalize(platform("macos/arm"))) == "darwin/arm/v7"


def test_the_best_platform_is_chosen() -> None:
    def best(wanted: str, *offered: str) -> list[str]:
        return list(choose([(platform(one), one) for one in offered], platform(wanted)))

    assert best("linux/amd64", "linux/386", "linux/amd64", "linux/arm64") == [
        "linux/amd64",
        "linux/386",
    ]
    assert best("linux/amd64/v3", "linux/amd64", "linux/amd64/v2", "linux/amd64/v4") == [
        "linux/amd64/v2",
        "linux/amd64",
    ]
    assert best("linux/arm64/v9", "linux/arm/v7", "linux/arm64/v8") == [
        "linux/arm64/v8",
        "linux/arm/v7",
    ]
    assert best("linux/arm/v6", "linux/arm/v7", "linux/arm/v5") == ["linux/arm/v5"]
    assert best("linux/s390x", "linux/s390x", "windows/s390x") == ["linux/s390x"]
    assert rank(platform("windows/amd64"), platform("linux/amd64")) is None


def test_a_config_gives_its_facts_and_no_reserved_label() -> None:
    raw = json.dumps(
        {
            "os": "linux",
            "architecture": "amd64",
            "config": {
                "Env": ["A=b"],
                "Entrypoint": ["/e"],
                "Cmd": ["c"],
                "User": "me",
                "WorkingDir": "/w",
                "StopSignal": "SIGINT",
                "Volumes": {"/v": {}},
                "ExposedPorts": {"80/tcp": {}},
                "Labels": {
                    "mine": "1",
                    "containerd.io/restart.status": "running",
                    "Containerd.io/gc.root": "x",
                    "io.cri-containerd.kind": "sandbox",
                    "holdfast.restart": "always",
                },
            },
            "rootfs": {"diff_ids": [EMPTY, EMPTY]},
        }
    ).encode()
    config = read_image_config(raw)
    assert config.args == ("/e", "c")
    assert (config.user, config.working_dir, config.stop_signal) == ("me", "/w", "SIGINT")
    assert (config.volumes, config.exposed_ports) == (("/v",), ("80/tcp",))
    assert offered_labels(config) == {"mine": "1"}
    assert chain_ids(config.diff_ids) == (EMPTY, digest_of(f"{EMPTY} {EMPTY}".encode()))
    empty = read_image_config(b'{"config":null}')
    assert (empty.args, empty.env, chain_ids(empty.diff_ids)) == ((), (), ())


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        ({"config": {"Env": ["A"]}}, InvalidArgument),
        ({"config": {"Cmd": ["a\0b"]}}, InvalidArgument),
        ({"config": {"Cmd": "sh"}}, InvalidArgument),
        ({"config": {"User": "x" * 200_000}}, ResourceExhausted),
        ({"config": {"Cmd": ["x"] * 5000}}, ResourceExhausted),
        ({"rootfs": {"diff_ids": [EMPTY] * 600}}, ResourceExhausted),
        ({"rootfs": {"diff_ids": ["sha256:x"]}}, InvalidArgument),
    ],
)
def test_a_config_without_measure_is_refused(
    value: dict[str, object], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        read_image_config(json.dumps(value).encode())
