"""How much longer creators wait while garbage is collected.

    python -m bench.collect --objects 50000 --seconds 5

Fills a daemon's database with that many content records, snapshot records, images and leases,
all kept by one lease or for their own sake. Threads then create images and leases over the API,
with nothing else to do, then while a synchronous delete has it all collected, then in peace again.
Prints one JSON object: the p50 and p99 of both times in milliseconds, how much was collected, and
the longest that the collector held up the daemon's loop or its writer, in processor time.

What a creator waits while nothing is collected is the baseline of the same run, so that a slow
or busy machine is compared with itself.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from google.protobuf.empty_pb2 import Empty

from holdfast.api.host import DATABASE_NAME
from holdfast.api.proto import types_pb2
from holdfast.api.proto.services import images_pb2, leases_pb2
from holdfast.storage.leases import Resource, resource_key
from holdfast.storage.store import Store, Transaction

from .daemons import running
from .load import Client, Target

NAMESPACE = "bench"
KEEPER = "keeper"
IN_A_TREE = 10
FILLED_AT_ONCE = 500
PARALLEL = 4
PAUSE_S = 0.01


@dataclass
class Waits:
    """How long each creation took, in seconds."""

    took_s: list[float] = field(default_factory=list[float])

    def quantile_ms(self, percent: int) -> float:
        """The time that so many percent did not exceed."""
        return statistics.quantiles(self.took_s, n=100)[percent - 1] * 1000


def digest(number: int) -> str:
    return f"sha256:{number:064x}"


def fill_tree(tx: Transaction, number: int) -> int:
    """A tree as images leave it: a manifest with blobs and snapshots below it, an image and a
    lease that are past their time; how many records these are."""
    first = number * IN_A_TREE
    config, layers = digest(first + 1), [digest(first + n) for n in (2, 3, 4)]
    labels = {"containerd.io/gc.ref.content.config": config}
    labels |= {f"containerd.io/gc.ref.content.l.{n}": each for n, each in enumerate(layers)}
    at = {"created_at": tx.now_ns, "updated_at": tx.now_ns}
    tx.put("content", NAMESPACE, digest(first), {"size": 1, "labels": labels, **at})
    below = {"containerd.io/gc.ref.snapshot.bench": f"{number}-2"}
    tx.put("content", NAMESPACE, config, {"size": 1, "labels": below, **at})
    for each in layers:
        tx.put("content", NAMESPACE, each, {"size": 1, "labels": {}, **at})
    for level in range(3):
        parent = f"{number}-{level - 1}" if level else ""
        record = {"id": first + level, "kind": "committed", "parent": parent, "labels": {}, **at}
        tx.put("snapshot", NAMESPACE, f"bench/{number}-{level}", record)
    target = {"media_type": "m", "digest": digest(first), "size": 1, "annotations": {}}
    past = {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"}
    tx.put("image", NAMESPACE, f"image-{number}", {"target": target, "labels": past, **at})
    held = Resource(type="images", id=f"image-{number}")
    tx.put("lease_resource", NAMESPACE, resource_key(KEEPER, held), {})
    return IN_A_TREE - 1


async def fill(path: Path, objects: int) -> int:
    """Make the database; how many records it has that will be garbage."""
    made = 0
    async with Store.open(path) as store:
        await store.write(
            lambda tx: tx.put("lease", NAMESPACE, KEEPER, {"labels": {}, "created_at": tx.now_ns})
        )
        numbers = iter(range(objects // IN_A_TREE))
        while chunk := list(itertools.islice(numbers, FILLED_AT_ONCE)):
            made += await store.write(lambda tx, c=chunk: sum(fill_tree(tx, n) for n in c))
    return made


def create(client: Client, name: str) -> None:
    """What a creator does once: a lease, and an image."""
    make_lease(client, name)
    target = types_pb2.Descriptor(media_type="m", digest="sha256:" + "f" * 64, size=1)
    request = images_pb2.CreateImageRequest(image=images_pb2.Image(name=name, target=target))
    path = "/containerd.services.images.v1.Images/Create"
    client.call(path, request, images_pb2.CreateImageResponse)


def make_lease(client: Client, name: str) -> None:
    request = leases_pb2.CreateRequest(id=name)
    client.call("/containerd.services.leases.v1.Leases/Create", request, leases_pb2.CreateResponse)


def drop_lease(client: Client, name: str) -> None:
    """Give a lease up, and wait until what only it held is collected."""
    request = leases_pb2.DeleteRequest(id=name, sync=True)
    client.call("/containerd.services.leases.v1.Leases/Delete", request, Empty)


def creating(target: Target, waits: Waits, done: threading.Event, name: str) -> None:
    """Create until it is done."""
    client = Client(target)
    try:
        for number in itertools.count():
            began_s = time.perf_counter()
            create(client, f"{name}-{number}")
            waits.took_s.append(time.perf_counter() - began_s)
            if done.wait(PAUSE_S):
                return
    finally:
        client.close()


def during(target: Target, name: str, work: Any) -> Waits:
    """What creators waited while `work` ran."""
    waits, done = Waits(), threading.Event()
    threads = [
        threading.Thread(target=creating, args=(target, waits, done, f"{name}-{n}"))
        for n in range(PARALLEL)
    ]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    return waits


def longest_ms(log: Path) -> float:
    """How long the daemon says that its collections held up its loop or its writer at most."""
    words = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    told = [each["longest_s"] for each in words if each["event"] == "garbage.collected"]
    return round(max(told) * 1000, 2)


def measure(base: Path, objects: int, seconds: float) -> dict[str, float]:
    """Fill, start, create in peace, create during a collection, create in peace again."""
    (base / "root").mkdir(parents=True)
    made = trio.run(fill, base / "root" / DATABASE_NAME, objects)
    with running("holdfast", base) as daemon:
        target = Target(address=str(daemon.socket), parent="", namespace=NAMESPACE)
        client = Client(target)
        try:
            # The first collection after the start is none of ours.
            make_lease(client, "first")
            drop_lease(client, "first")
            peace = during(target, "before", lambda: time.sleep(seconds / 2))
            began_s = time.perf_counter()
            while_ = during(target, "during", lambda: drop_lease(client, KEEPER))
            took_s = time.perf_counter() - began_s
            after = during(target, "after", lambda: time.sleep(seconds / 2))
            answer = client.call(
                "/containerd.services.images.v1.Images/List",
                images_pb2.ListImagesRequest(filters=["name~=^image-"]),
                images_pb2.ListImagesResponse,
            )
        finally:
            client.close()
    peace.took_s += after.took_s
    return {
        "objects": made,
        "images_left": len(answer.images),
        "collected_in_s": round(took_s, 3),
        "longest_ms": longest_ms(base / "daemon.log"),
        "created_in_peace": len(peace.took_s),
        "created_during": len(while_.took_s),
        "baseline_p50_ms": round(peace.quantile_ms(50), 2),
        "during_p50_ms": round(while_.quantile_ms(50), 2),
        "baseline_p99_ms": round(peace.quantile_ms(99), 2),
        "during_p99_ms": round(while_.quantile_ms(99), 2),
        "p99_growth_ms": round(while_.quantile_ms(99) - peace.quantile_ms(99), 2),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--objects", type=int, default=50_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long the baseline takes")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hf-collect-") as folder:
        result = measure(Path(folder) / "daemon", given.objects, given.seconds)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
