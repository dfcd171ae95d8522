"""Resolve, get and referrers, of servers that do as registries do, and of some that do not."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from clients import blob, fetched, opened_registry, pieces_of
from loopback import MANIFEST, Answer, Answers, Seen, in_turn, loopback, manifest, told
from servers import Server

from holdfast.actors.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Refusal,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from holdfast.storage.descriptor import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    describe,
)
from holdfast.storage.digest import Digest, digest_of
from holdfast.storage.registry.referrers import next_page

RAW = os.urandom(10_000)
SUBJECT = digest_of(b"subject")
SIGNATURE, INVENTORY = "application/vnd.example.signature", "application/vnd.example.inventory"


def document(media_type: str, config_type: str, **more: object) -> bytes:
    """A manifest of one blob, RAW, that is its config and its layer."""
    pointer = {"digest": blob(RAW).digest, "size": len(RAW)}
    value = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {"mediaType": config_type, **pointer},
        "layers": [{"mediaType": OCI_LAYER, **pointer}],
        **more,
    }
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("media_type", "config_type"),
    [
        (OCI_MANIFEST, "application/vnd.oci.image.config.v1+json"),
        (DOCKER_MANIFEST, "application/vnd.docker.container.image.v1+json"),
        (OCI_MANIFEST, "application/vnd.example.artifact.config.v1+json"),
    ],
)
async def test_manifests_of_each_kind_are_found_by_tag_and_by_digest(
    plain: Server, media_type: str, config_type: str
) -> None:
    raw = document(media_type, config_type)
    target = describe(raw, media_type)
    async with opened_registry(f"{plain.authority}/kinds:1") as client:
        await client.put_blob(blob(RAW), pieces_of(RAW))
        await client.put_manifest(target, raw, "1")
        assert await client.resolve() == target
        assert await fetched(client, target) == raw
    async with opened_registry(f"{plain.authority}/kinds@{target.digest}") as client:
        assert await client.resolve() == target


@pytest.mark.parametrize(("inner", "outer"), [(OCI_INDEX, OCI_INDEX), (DOCKER_INDEX, DOCKER_INDEX)])
async def test_an_index_may_list_indexes(plain: Server, inner: str, outer: str) -> None:
    manifest_type = OCI_MANIFEST if inner == OCI_INDEX else DOCKER_MANIFEST
    raw = document(manifest_type, "application/vnd.oci.image.config.v1+json")
    async with opened_registry(f"{plain.authority}/nested:1") as client:
        await client.put_blob(blob(RAW), pieces_of(RAW))
        target = describe(raw, manifest_type)
        await client.put_manifest(target, raw, target.digest)
        for media_type in (inner, outer):
            entry = {**target.to_json(), "platform": {"os": "linux", "architecture": "amd64"}}
            value = {"schemaVersion": 2, "mediaType": media_type, "manifests": [entry]}
            raw = json.dumps(value).encode()
            target = describe(raw, media_type)
            await client.put_manifest(target, raw, target.digest)
        await client.put_manifest(target, raw, "1")
        assert await client.resolve() == target


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json; charset=utf-8",
        "text/plain; charset=utf-8",
    ],
)
async def test_schema_1_is_refused_by_name(media_type: str) -> None:
    with loopback(in_turn(manifest(media_type=media_type))) as server:
        async with opened_registry(f"{server.authority}/old:1") as client:
            with pytest.raises(Unimplemented, match=r"/old:1: docker schema 1 images .* anew"):
                await client.resolve()


def without(answer: Answer, *names: str) -> Answer:
    headers = {name: value for name, value in answer.headers.items() if name not in names}
    return Answer(answer.status, answer.body, headers)


def heads(head: Answer, rest: Answer) -> Answers:
    return lambda seen: head if seen.method == "HEAD" else rest


@pytest.mark.parametrize(
    "answer",
    [
        heads(without(manifest(), "Docker-Content-Digest"), manifest()),
        heads(without(manifest(), "Content-Type"), manifest()),
        heads(told(405, "UNSUPPORTED", "no HEAD"), manifest()),
        heads(told(400, "UNSUPPORTED", "no HEAD"), manifest()),
    ],
)
async def test_a_registry_that_tells_nothing_beforehand_is_asked_for_the_whole(
    answer: Answers,
) -> None:
    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            assert await client.resolve() == describe(MANIFEST, OCI_MANIFEST)


@pytest.mark.parametrize(
    ("answer", "refusal", "said"),
    [
        (manifest(media_type="application/json"), InvalidArgument, "unsupported media type"),
        (Answer(headers={"Content-Length": "9" * 9}), ResourceExhausted, "a manifest of"),
        (Answer(headers={"Content-Length": "9" * 5000}), Unavailable, "Content-Length"),
        (Answer(headers={"Docker-Content-Digest": "sha256:xyz"}), InvalidArgument, "validation"),
        (Answer(headers={"Docker-Content-Digest": "md5:" + "a" * 32}), InvalidArgument, "valid"),
        (Answer(headers={f"X-{n}": "x" * 60_000 for n in range(9)}), Unavailable, "broke"),
        (Answer(headers={f"X-{n}": "x" for n in range(20_000)}), Unavailable, "broke"),
    ],
)
async def test_what_is_no_manifest_is_refused(
    answer: Answer, refusal: type[Refusal], said: str
) -> None:
    whole = Answer(answer.status, answer.body, {**manifest().headers, **answer.headers})
    with loopback(in_turn(whole)) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(refusal, match=said):
                await client.resolve()


async def test_another_digest_than_the_one_asked_for_is_refused() -> None:
    with loopback(in_turn(manifest())) as server:
        async with opened_registry(f"{server.authority}/tool@{SUBJECT}") as client:
            with pytest.raises(FailedPrecondition, match="the registry has sha256:"):
                await client.resolve()


async def test_documents_have_bounds() -> None:
    tell_nothing = without(manifest(b"x" * (9 << 20)), "Docker-Content-Digest")
    with loopback(in_turn(tell_nothing)) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(ResourceExhausted, match="more than 8388608 bytes"):
                await client.resolve()
    folded = Answer(body=b"x", headers={"Content-Type": OCI_MANIFEST, "Content-Encoding": "gzip"})
    with loopback(in_turn(folded)) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(Unavailable, match="not asked for"):
                await client.resolve()


async def test_a_part_of_a_blob_is_what_was_asked_for_or_refused() -> None:
    answers = in_turn(
        Answer(206, RAW[5:9], {"Content-Range": "bytes 5-8/10000"}),
        Answer(200, RAW),
        Answer(206, RAW[6:9], {"Content-Range": "bytes 6-8/10000"}),
        Answer(206, RAW[5:9]),
        told(416, "RANGE_INVALID", "no"),
        Answer(200, RAW, cut=1000),
    )
    with loopback(answers) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            async with client.get(blob(RAW), 5, 9) as (begins, pieces):
                assert begins == 5
                assert b"".join([piece async for piece in pieces]) == RAW[5:9]
            assert server.seen[0].headers["range"] == "bytes=5-8"
            async with client.get(blob(RAW), 5) as (begins, pieces):
                assert begins == 0
                assert b"".join([piece async for piece in pieces]) == RAW
            for _ in range(2):
                with pytest.raises(Unavailable, match="asked from byte 5"):
                    await fetched(client, blob(RAW), 5)
            with pytest.raises(OutOfRange, match="RANGE_INVALID: no"):
                await fetched(client, blob(RAW), 5)
            with pytest.raises(Unavailable, match="the connection broke"):
                await fetched(client, blob(RAW))


def entry(name: str, kind: str) -> Descriptor:
    raw = name.encode()
    return Descriptor(
        media_type=OCI_MANIFEST,
        digest=digest_of(raw),
        size=len(raw),
        artifact_type=kind,
        annotations={"name": name},
    )


def listed(*entries: Descriptor, **headers: str) -> Answer:
    value = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    raw = json.dumps({**value, "manifests": [one.to_json() for one in entries]}).encode()
    return Answer(body=raw, headers={"Content-Type": OCI_INDEX, **headers})


async def test_referrers_are_listed_page_by_page_and_by_their_kind() -> None:
    first, second, third = entry("a", SIGNATURE), entry("b", INVENTORY), entry("c", SIGNATURE)

    def answer(seen: Seen) -> Answer:
        assert seen.path == f"/v2/tool/referrers/{SUBJECT}"
        if "last" in seen.query:
            return listed(third, first)
        url = f'<{seen.path}?last=b&artifactType=x>; rel="next"'
        return listed(first, second, Link=url)

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            assert await client.referrers(SUBJECT) == [first, second, third]
            assert await client.referrers(SUBJECT, SIGNATURE) == [first, third]
            assert server.seen[2].query == {"artifactType": [SIGNATURE]}
            assert await client.referrers(SUBJECT, "application/other") == []


async def test_referrers_of_a_registry_without_their_api_are_under_a_tag(plain: Server) -> None:
    one, two = entry("a", SIGNATURE), entry("b", INVENTORY)
    async with opened_registry(f"{plain.authority}/refer:1") as client:
        raw = document(OCI_MANIFEST, "application/vnd.oci.image.config.v1+json")
        target = describe(raw, OCI_MANIFEST)
        await client.put_blob(blob(RAW), pieces_of(RAW))
        await client.put_manifest(target, raw, "1")
        # This registry knows no such list, and nobody has kept one.
        assert await client.referrers(target.digest) == []
        # It takes an index only of what it has: the one manifest, listed as two kinds of things.
        entries = [
            {**target.to_json(), "artifactType": kind, "annotations": {"n": str(number)}}
            for number, kind in enumerate((SIGNATURE, INVENTORY))
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries[:1]}
        kept = json.dumps(index).encode()
        tag = target.digest.replace(":", "-")
        await client.put_manifest(describe(kept, OCI_INDEX), kept, tag)
        (found,) = await client.referrers(target.digest, SIGNATURE)
        assert (found.digest, found.artifact_type) == (target.digest, SIGNATURE)
        assert await client.referrers(target.digest, INVENTORY) == []
    assert one != two


@pytest.mark.parametrize(
    "unknowing",
    [
        told(404, "NOT_FOUND", "page not found"),
        told(405, "UNSUPPORTED", "no"),
        told(400, "UNSUPPORTED", "no"),
        Answer(200, b"<html>welcome</html>", {"Content-Type": "text/html"}),
    ],
)
async def test_whatever_says_that_there_is_no_api_leads_to_the_tag(unknowing: Answer) -> None:
    one = entry("a", SIGNATURE)
    tag = f"/v2/tool/manifests/sha256-{SUBJECT.partition(':')[2]}"
    with loopback(lambda seen: listed(one) if seen.path == tag else unknowing) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            assert await client.referrers(SUBJECT) == [one]
    none = told(404, "MANIFEST_UNKNOWN", "none")
    with loopback(lambda seen: none if seen.path == tag else unknowing) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            assert await client.referrers(SUBJECT) == []


async def test_a_list_of_referrers_has_an_end() -> None:
    counted = iter(range(10**9))

    def answer(seen: Seen) -> Answer:
        one = entry(str(next(counted)), SIGNATURE)
        return listed(one, Link=f'<{seen.path}?n={next(counted)}>; rel="next"')

    with loopback(answer) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(ResourceExhausted, match="more referrers"):
                await client.referrers(SUBJECT)
        assert len(server.seen) == 100


async def test_a_refusal_of_referrers_is_not_taken_for_none() -> None:
    with loopback(in_turn(told(503, "BUSY", "later"))) as server:
        async with opened_registry(f"{server.authority}/tool:1") as client:
            with pytest.raises(Unavailable, match="BUSY"):
                await client.referrers(SUBJECT)


@pytest.mark.parametrize(
    ("link", "query"),
    [
        ('</v2/x/referrers/d?n=1&last=a>; rel="next"', {"n": "1", "last": "a"}),
        ("<http://elsewhere/x?n=1&ns=h>;rel=next", {"n": "1"}),
        ('</a?x=1>; rel="prev", </b?x=2>; rel="next"', {"x": "2"}),
        ('</a?x=1>; rel="prev"', None),
        ("", None),
        ("<", None),
        ('<http://[>; rel="next"', None),
    ],
)
def test_the_next_page_is_a_query_of_the_same_place(
    link: str, query: dict[str, str] | None
) -> None:
    assert next_page(link, "http://localhost/v2/x/referrers/d") == query


async def test_what_nobody_has_is_not_found(plain: Server) -> None:
    async with opened_registry(f"{plain.authority}/never:1") as client:
        with pytest.raises(NotFound, match=r"HEAD .* HTTP status 404: not found"):
            await client.resolve()
        with pytest.raises(NotFound, match="HTTP status 404: BLOB_UNKNOWN"):
            await fetched(client, Descriptor(media_type="x", digest=Digest(SUBJECT), size=1))
