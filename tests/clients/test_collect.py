"""Garbage collection as clients see it: what is left after a synchronous delete, compared with
Debian's containerd; `holdfast why`; and how long creators wait meanwhile."""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty

from holdfast.api.proto import types_pb2
from holdfast.api.proto.services import (
    containers_pb2,
    content_pb2,
    images_pb2,
    leases_pb2,
    snapshots_pb2,
)

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from bench import collect
from bench.daemons import Daemon, running
from test_holdfast import Holdfast

pytestmark = [pytest.mark.root, pytest.mark.slow]

NATIVE = "native"
EXPIRES_IN_S = 1.5
ROUNDS = 8


class Api:
    """containerd's API on a daemon's socket, in one namespace."""

    def __init__(self, daemon: Daemon, namespace: str) -> None:
        options = [("grpc.default_authority", "localhost")]
        self.channel = grpc.insecure_channel(f"unix:{daemon.socket}", options=options)
        self.namespace = namespace

    def metadata(self, lease: str) -> Sequence[tuple[str, str]]:
        named = [("containerd-namespace", self.namespace)]
        return [*named, ("containerd-lease", lease)] if lease else named

    def call(self, path: str, request: Any, answer: Any, lease: str = "") -> Any:
        service, method = path.split("/")
        full = f"/containerd.services.{service.lower()}.v1.{service}/{method}"
        call = self.channel.unary_unary(full, type(request).SerializeToString, answer.FromString)
        return call(request, metadata=self.metadata(lease), timeout=30)

    def stream(self, path: str, requests: Sequence[Any], answer: Any, lease: str = "") -> list[Any]:
        service, method = path.split("/")
        full = f"/containerd.services.{service.lower()}.v1.{service}/{method}"
        call = self.channel.stream_stream(
            full, type(requests[0]).SerializeToString, answer.FromString
        )
        return list(call(iter(requests), metadata=self.metadata(lease), timeout=30))

    # -- what a graph is made of

    def blob(self, raw: bytes, labels: dict[str, str], lease: str) -> None:
        digest = digest_of(raw)
        request = content_pb2.WriteContentRequest(
            action=content_pb2.WriteAction.COMMIT,
            ref=f"blob-{digest}",
            total=len(raw),
            expected=digest,
            data=raw,
            labels=labels,
        )
        self.stream("Content/Write", [request], content_pb2.WriteContentResponse, lease)

    def ingest(self, ref: str, lease: str) -> None:
        request = content_pb2.WriteContentRequest(
            action=content_pb2.WriteAction.WRITE, ref=ref, data=b"half"
        )
        self.stream("Content/Write", [request], content_pb2.WriteContentResponse, lease)

    def snapshot(self, name: str, parent: str, labels: dict[str, str], lease: str) -> None:
        key = f"{name}-active"
        prepare = snapshots_pb2.PrepareSnapshotRequest(snapshotter=NATIVE, key=key, parent=parent)
        self.call("Snapshots/Prepare", prepare, snapshots_pb2.PrepareSnapshotResponse, lease)
        commit = snapshots_pb2.CommitSnapshotRequest(
            snapshotter=NATIVE, name=name, key=key, labels=labels
        )
        self.call("Snapshots/Commit", commit, Empty, lease)

    def image(self, name: str, digest: str, labels: dict[str, str]) -> None:
        target = types_pb2.Descriptor(media_type="application/x", digest=digest, size=1)
        image = images_pb2.Image(name=name, target=target, labels=labels)
        request = images_pb2.CreateImageRequest(image=image)
        self.call("Images/Create", request, images_pb2.CreateImageResponse)

    def container(self, name: str, snapshot: str, labels: dict[str, str]) -> None:
        container = containers_pb2.Container(
            id=name,
            labels=labels,
            snapshotter=NATIVE,
            snapshot_key=snapshot,
            runtime=containers_pb2.Container.Runtime(name="io.containerd.runc.v2"),
            spec=AnyMessage(type_url="x", value=b"{}"),
        )
        request = containers_pb2.CreateContainerRequest(container=container)
        self.call("Containers/Create", request, containers_pb2.CreateContainerResponse)

    def lease(self, name: str, labels: dict[str, str]) -> None:
        request = leases_pb2.CreateRequest(id=name, labels=labels)
        self.call("Leases/Create", request, leases_pb2.CreateResponse)

    def hold(self, lease: str, type_: str, name: str) -> None:
        resource = leases_pb2.Resource(type=type_, id=name)
        request = leases_pb2.AddResourceRequest(id=lease, resource=resource)
        self.call("Leases/AddResource", request, Empty)

    def drop_lease(self, name: str) -> None:
        self.call("Leases/Delete", leases_pb2.DeleteRequest(id=name, sync=True), Empty)

    def drop_image(self, name: str) -> None:
        self.call("Images/Delete", images_pb2.DeleteImageRequest(name=name, sync=True), Empty)

    def drop_container(self, name: str) -> None:
        self.call("Containers/Delete", containers_pb2.DeleteContainerRequest(id=name), Empty)

    def left(self) -> set[str]:
        """All that is there."""
        blobs = self.stream(
            "Content/List", [content_pb2.ListContentRequest()], content_pb2.ListContentResponse
        )
        snapshots = self.stream(
            "Snapshots/List",
            [snapshots_pb2.ListSnapshotsRequest(snapshotter=NATIVE)],
            snapshots_pb2.ListSnapshotsResponse,
        )
        statuses = self.call(
            "Content/ListStatuses",
            content_pb2.ListStatusesRequest(),
            content_pb2.ListStatusesResponse,
        )
        images = self.call(
            "Images/List", images_pb2.ListImagesRequest(), images_pb2.ListImagesResponse
        )
        leases = self.call("Leases/List", leases_pb2.ListRequest(), leases_pb2.ListResponse)
        containers = self.call(
            "Containers/List",
            containers_pb2.ListContainersRequest(),
            containers_pb2.ListContainersResponse,
        )
        found = {info.digest for answer in blobs for info in answer.info}
        found |= {f"snapshot {info.name}" for answer in snapshots for info in answer.info}
        found |= {f"ingest {status.ref}" for status in statuses.statuses}
        found |= {f"image {image.name}" for image in images.images}
        found |= {f"lease {lease.id}" for lease in leases.leases}
        return found | {f"container {each.id}" for each in containers.containers}


def digest_of(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


class Graph:
    """Labelled objects that refer to each other at random, the same for each daemon."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.blobs = [f"{seed}-{number}".encode() for number in range(9)]
        self.snapshots = [f"s{number}" for number in range(6)]

    def labels(self, dice: random.Random) -> dict[str, str]:
        labels: dict[str, str] = {}
        for number in range(dice.choice([0, 0, 1, 2])):
            if dice.random() < 0.65:
                name = dice.choice(["", f".l.{number}", f"/x{number}"])
                labels[f"containerd.io/gc.ref.content{name}"] = digest_of(dice.choice(self.blobs))
            else:
                name = dice.choice(["", f"/x{number}"])
                labels[f"containerd.io/gc.ref.snapshot.{NATIVE}{name}"] = dice.choice(
                    self.snapshots
                )
        if dice.random() < 0.1:
            labels["containerd.io/gc.root"] = "2020-01-01T00:00:00Z"
        labels["an/other"] = "x"
        return labels

    def build(self, api: Api) -> None:
        """Make it, all held by the lease `build`."""
        dice = random.Random(self.seed)
        api.lease("build", {})
        for raw in self.blobs:
            if dice.random() < 0.9:
                api.blob(raw, self.labels(dice), "build")
        for number, name in enumerate(self.snapshots):
            parent = dice.choice(["", *self.snapshots[:number]])
            api.snapshot(name, parent, self.labels(dice), "build")
        for number in range(2):
            labels = self.labels(dice)
            labels.pop("containerd.io/gc.root", None)
            api.image(f"i{number}", digest_of(dice.choice(self.blobs)), labels)
            api.container(f"c{number}", dice.choice(self.snapshots), self.labels(dice))
        soon = datetime.now(UTC) + timedelta(seconds=EXPIRES_IN_S)
        for number, expires in enumerate((None, None, soon, soon + timedelta(hours=1))):
            labels = {"containerd.io/gc.flat": "x"} if dice.random() < 0.4 else {}
            # Where a lease's own labels are heeded, this one keeps something.
            labels["containerd.io/gc.ref.content"] = digest_of(dice.choice(self.blobs))
            if expires is not None:
                labels["containerd.io/gc.expire"] = expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            api.lease(f"l{number}", labels)
            for _ in range(2):
                if dice.random() < 0.5:
                    api.hold(f"l{number}", "content", digest_of(dice.choice(self.blobs)))
                else:
                    api.hold(f"l{number}", f"snapshots/{NATIVE}", dice.choice(self.snapshots))
        api.ingest("held", "l0")
        api.ingest("free", "")

    def deletions(self, api: Api) -> Iterator[set[str]]:
        """Delete one after the other, synchronously; what is left after each."""
        dice = random.Random(self.seed + 1)
        api.drop_lease("build")
        yield api.left()
        steps = ["i0", "i1", "c0", "c1", "l0", "l1"]
        dice.shuffle(steps)
        for step in steps:
            if step[0] == "i":
                api.drop_image(step)
            elif step[0] == "l":
                api.drop_lease(step)
            else:
                api.drop_container(step)
                api.lease("none", {})
                api.drop_lease("none")
            yield api.left()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Daemon]]:
    base = tmp_path_factory.mktemp("both")
    with running("holdfast", base / "h") as ours, running("containerd", base / "c") as theirs:
        yield ours, theirs


@pytest.mark.parametrize("number", range(ROUNDS))
def test_what_is_left_is_what_containerd_leaves(both: Sequence[Daemon], number: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    graph = Graph(seed)
    apis = [Api(daemon, f"ns-{uuid.uuid4().hex[:8]}") for daemon in both]
    for api in apis:
        graph.build(api)
    time.sleep(EXPIRES_IN_S)
    ours, theirs = (list(graph.deletions(api)) for api in apis)
    assert len(ours) == 7
    for step, (left, expected) in enumerate(zip(ours, theirs, strict=True)):
        assert left == expected, f"seed {seed}, after deletion {step}"
    # The graph was one in which something went.
    assert len(ours[-1]) < len(ours[0])
    for api in apis:
        api.channel.close()


def test_why_tells_the_chain_and_the_end(both: Sequence[Daemon]) -> None:
    holdfast = Holdfast(both[0])
    namespace = f"ns-{uuid.uuid4().hex[:8]}"
    holdfast.words += ["--namespace", namespace]
    api = Api(both[0], namespace)
    layer, manifest, lost = b"layer", b"manifest", b"lost"
    api.lease("build", {"containerd.io/gc.expire": "2199-01-01T00:00:00Z"})
    api.blob(layer, {}, "build")
    api.snapshot("top", "", {}, "build")
    api.blob(manifest, {"containerd.io/gc.ref.content.l.0": digest_of(layer)}, "build")
    said = holdfast.run("why", "content", digest_of(manifest)).splitlines()
    assert said[0].startswith("kept: a lease, until 2199-01-01T00:00:00+00:00 (")
    assert said[1:] == ["  lease build", f"  held -> content {digest_of(manifest)}"]
    api.image("img", digest_of(manifest), {})
    api.drop_lease("build")
    assert holdfast.run("why", "content", digest_of(layer)).splitlines() == [
        "kept: an image",
        "  image img",
        f"  target -> content {digest_of(manifest)}",
        f"  containerd.io/gc.ref.content.l.0 -> content {digest_of(layer)}",
    ]
    told = json.loads(holdfast.run("why", "--json", "image", "img"))
    (same,) = holdfast.records("why", "image", "img")
    assert told == same
    assert told["chain"] == [{"how": "an image", "kind": "image", "name": "img", "flat": False}]
    assert (told["kept"], told["until"], told["left_s"]) == (True, "", None)
    assert 'snapshot "native/top": not found' in holdfast.refused(
        "why", "--snapshotter", NATIVE, "snapshot", "top"
    )
    holdfast.refused("why", "task", "img", code=2)
    # Garbage until the next collection, which one more blob does not bring about.
    api.blob(lost, {}, "")
    said = holdfast.run("why", "content", digest_of(lost))
    assert said.startswith("garbage: goes ")
    told = json.loads(holdfast.run("why", "--json", "content", digest_of(lost)))
    assert (told["kept"], told["chain"]) == (False, [])
    assert told["goes"]
    api.channel.close()


def test_creators_hardly_wait_for_a_collection(tmp_path: Path) -> None:
    """A small round of `python -m bench.collect`; others may keep the machine busy meanwhile, and
    then p99 varies by more than a collection adds."""
    tried: list[dict[str, float]] = []
    for number in range(3):
        tried.append(collect.measure(tmp_path / str(number), 3000, 3.0))
        assert tried[-1]["objects"] == 2700
        assert tried[-1]["images_left"] == 0
        # In processor time: what the machine does besides does not count.
        assert tried[-1]["longest_ms"] < 25
        if tried[-1]["p99_growth_ms"] < max(10.0, tried[-1]["baseline_p99_ms"]):
            return
    pytest.fail(f"creators waited: {tried}")
