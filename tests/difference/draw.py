"""Sequences of steps, drawn by dice.

Names come from small pools, so that steps meet the same objects; a part of all input is unusual.
"""

from collections.abc import Callable, Sequence
from typing import Any

from . import draw_tasks
from .draw_content import content
from .inputs import DIGESTS, Dice, filters, labels, lease, mask, name, ns, odd
from .step import Step

STEPS = range(6, 22)
TASKS_SHARE = 0.04  # a sequence with containers takes as long as ten without


# -- namespaces


ODD_NAMESPACES = ("", "-@ns", "@ns/b", "@ns b", "@ns-ü", "@ns-@ax77@", "@ns-\n")


def namespaces(dice: Dice) -> Step:
    """A call to the namespaces service."""
    called = dice.choice(ODD_NAMESPACES if odd(dice, 0.06) else ("@ns-a", "@ns-a", "@ns-b"))
    verb = dice.choice(("Create", "Create", "Get", "Update", "Update", "Delete"))
    match verb:
        case "Create":
            request: Any = {"namespace": {"name": called, "labels": labels(dice)}}
        case "Update":
            given = {"name": called, "labels": labels(dice)}
            request = {"namespace": given, "update_mask": mask(dice)}
        case _:
            request = {"name": called}
    return Step(f"Namespaces.{verb}", request, ns=None if odd(dice, 0.02) else "@ns-a")


# -- containers

CONTAINERS = ("c1", "c2", "c3")
SPEC = {"type_url": "types.containerd.io/opencontainers/runtime-spec/1/Spec", "value": b"{}"}
OTHER = {"type_url": "example.com/x", "value": b"\x01"}


def container(dice: Dice) -> dict[str, Any]:
    """A container's fields."""
    made: dict[str, Any] = {"id": name(dice, CONTAINERS), "labels": labels(dice)}
    if not odd(dice, 0.05):
        made["spec"] = dice.choice((SPEC, OTHER, {}))
    if not odd(dice, 0.05):
        made["runtime"] = {"name": dice.choice(("io.containerd.runc.v2", "runc", ""))}
        if odd(dice, 0.3):
            made["runtime"]["options"] = OTHER
    if odd(dice, 0.5):
        made["snapshotter"] = dice.choice(("overlayfs", "native", "none"))
    if odd(dice, 0.3):
        made["snapshot_key"] = dice.choice(("s1", "s2"))
    if odd(dice, 0.5):
        made["image"] = dice.choice(("i1", "i2"))
    if odd(dice, 0.3):
        made["extensions"] = {dice.choice(("e1", "e2", "e.1", "")): dice.choice((OTHER, {}))}
    return made


def containers(dice: Dice) -> Step:
    """A call to the containers service."""
    verb = dice.choice(("Create", "Create", "Create", "Get", "List", "Update", "Update", "Delete"))
    match verb:
        case "Create":
            request: Any = {"container": container(dice)}
        case "Update":
            own = ("spec", "image", "snapshotkey", "snapshot_key", "extensions", "extensions.e1",
                   "extensions.e.1", "runtime", "snapshotter")  # fmt: skip
            request = {"container": container(dice), "update_mask": mask(dice, *own)}
        case "List":
            own = ("id==c1", "id!=c1", "id~=c", "image==i1", "image", "runtime.name==runc",
                   "runtime.name", "runtime", "id,labels.k1", "id.x==c1", "image~=i.")  # fmt: skip
            request = {"filters": filters(dice, *own)}
        case _:
            request = {"id": name(dice, CONTAINERS)}
    return Step(f"Containers.{verb}", request, ns=ns(dice))


# -- images

IMAGES = ("i1", "i2", "docker.io/library/busybox:latest")


def image(dice: Dice) -> dict[str, Any]:
    """An image's fields."""
    made: dict[str, Any] = {"name": name(dice, IMAGES), "labels": labels(dice)}
    if not odd(dice, 0.04):
        digests = ("", "sha256:12", "x", "md5:" + "0" * 32, "sha256:" + "Z" * 64, "@sha512-0", ":")
        target: dict[str, Any] = {
            "digest": dice.choice(digests if odd(dice) else ("@sha0", "@sha1")),
            "size": dice.choice((0, -1) if odd(dice, 0.06) else (1, 11)),
            "media_type": "" if odd(dice, 0.06) else "application/octet-stream",
        }
        if odd(dice, 0.3):
            target["annotations"] = {
                dice.choice(("a1", "a2", "a.1")): dice.choice(("v1", "v2", ""))
            }
        made["target"] = target
    return made


def images(dice: Dice) -> Step:
    """A call to the images service."""
    verb = dice.choice(("Create", "Create", "Create", "Get", "List", "Update", "Update", "Delete"))
    match verb:
        case "Create":
            request: Any = {"image": image(dice)}
        case "Update":
            own = ("target", "annotations", "annotations.a1", "annotations.a.1", "target.size")
            request = {"image": image(dice), "update_mask": mask(dice, *own)}
        case "List":
            own = ("name==i1", "name", "name~=busy", "target.digest==@sha0", "target.digest",
                   "target.mediatype~=octet", "target.size==1", "target", "annotations.a1==v1",
                   "name!=i2")  # fmt: skip
            request = {"filters": filters(dice, *own)}
        case "Delete":
            request = {"name": name(dice, IMAGES), "sync": odd(dice, 0.3)}
        case _:
            request = {"name": name(dice, IMAGES)}
    return Step(f"Images.{verb}", request, ns=ns(dice), lease=lease(dice))


# -- leases

LEASES = ("l1", "l2")


def leases(dice: Dice) -> Step:
    """A call to the leases service."""
    verb = dice.choice(
        ("Create", "Create", "Create", "List", "Delete", "AddResource", "AddResource",
         "DeleteResource", "ListResources")
    )  # fmt: skip
    called = name(dice, LEASES) or "l1"
    match verb:
        case "Create":
            request: Any = {"id": called, "labels": labels(dice)}
        case "List":
            request = {"filters": filters(dice, "id==l1", "id~=l", "id")}
        case "Delete":
            request = {"id": name(dice, LEASES), "sync": odd(dice, 0.3)}
        case "ListResources":
            request = {"id": name(dice, LEASES)}
        case _:
            request = {"id": name(dice, LEASES), "resource": resource(dice)}
    return Step(f"Leases.{verb}", request, ns=ns(dice))


def resource(dice: Dice) -> dict[str, str]:
    """A resource of a lease."""
    if odd(dice, 0.15):
        kinds = ("", "x", "content/x", "snapshots", "snapshots/", "snapshots/a/b", "images", "/")
        return {"type": dice.choice(kinds), "id": dice.choice(("", "x", "@sha0"))}
    return dice.choice(
        (
            {"type": "content", "id": dice.choice((*DIGESTS, "x", ""))},
            {"type": "ingests", "id": dice.choice(("ref1", ""))},
            {"type": "snapshots/overlayfs", "id": dice.choice(("s1", "b1", ""))},
            {"type": "snapshots/none", "id": "s1"},
        )
    )


# -- snapshots

ACTIVES = ("s1", "s2", "s3")
BASES = ("b1", "b2")
KEYS = (*ACTIVES, *BASES)


def snapshots(dice: Dice) -> Step:
    """A call to the snapshots service."""
    verb = dice.choice(
        ("Prepare", "Prepare", "Prepare", "View", "Commit", "Commit", "Remove", "Stat", "Update",
         "List", "Usage", "Mounts")
    )  # fmt: skip
    request: Any = {"snapshotter": "overlayfs" if dice.random() < 0.8 else "native"}
    if odd(dice, 0.03):
        request["snapshotter"] = dice.choice(("", "none", "a/b"))
    match verb:
        case "Prepare" | "View":
            request |= {"key": name(dice, ACTIVES), "labels": labels(dice)}
            if odd(dice, 0.5):
                request["parent"] = name(dice, (*BASES, *BASES, "s1"))
            if odd(dice, 0.08):
                request["labels"]["containerd.io/snapshot.ref"] = dice.choice(BASES)
        case "Commit":
            request |= {"name": name(dice, BASES), "key": name(dice, ACTIVES)}
            request["labels"] = labels(dice)
        case "Update":
            given = {"name": name(dice, KEYS), "labels": labels(dice)}
            request |= {"info": given, "update_mask": mask(dice, "parent", "kind")}
        case "List":
            own = ("name==s1", "name", "parent==b1", "parent", "kind==active", "kind==committed",
                   "kind==view", "name~=s", "kind")  # fmt: skip
            request["filters"] = filters(dice, *own)
        case _:
            request["key"] = name(dice, KEYS)
    has_name = request.get("key", request.get("name")) != ""
    return Step(f"Snapshots.{verb}", request, ns=ns(dice), lease=lease(dice) if has_name else None)


# -- events


def events(dice: Dice) -> Step:
    """An event that a client publishes or forwards."""
    topics = ("/a", "/a/b", "/tasks/x")
    odds = ("", "a", "/", "//", "/a/", "/-", "/a b", "/" + "x" * 77, "/ü", "/a\n")
    event = {"type_url": "example.com/x", "value": b"\x01"}
    topic = dice.choice(odds if odd(dice, 0.3) else topics)
    if odd(dice, 0.6):
        return Step("Events.Publish", {"topic": topic, "event": event}, ns=ns(dice))
    stamp = {"seconds": dice.choice((1, 1_700_000_000))}
    where = dice.choice(("@ns-a", "@ns-a", "@ns-b", "", "-bad", "a/b"))
    envelope: Any = {"topic": topic, "event": event, "namespace": where, "timestamp": stamp}
    if odd(dice):
        del envelope["timestamp"]
    return Step("Events.Forward", {"envelope": envelope}, ns=ns(dice))


KINDS: dict[str, Callable[[Dice], Step]] = {
    "namespaces": namespaces,
    "containers": containers,
    "images": images,
    "leases": leases,
    "content": content,
    "snapshots": snapshots,
    "events": events,
}


def sequence(dice: Dice, kinds: Sequence[str] = ()) -> list[Step]:
    """The steps of one sequence: of one, two or three services."""
    if "tasks" in kinds or (not kinds and odd(dice, TASKS_SHARE)):
        return draw_tasks.sequence(dice)
    pool = sorted(kinds or KINDS)
    chosen = dice.sample(pool, min(len(pool), dice.choice((1, 2, 3))))
    steps = [KINDS[dice.choice(chosen)](dice) for _ in range(dice.choice(STEPS))]
    if "namespaces" in chosen:
        # A Prepare that containerd refuses late has made a namespace there.
        steps = [step for step in steps if not _is_refused_late(step)]
    return steps


def _is_refused_late(step: Step) -> bool:
    makes = step.method in ("Snapshots.Prepare", "Snapshots.View")
    return makes and (step.lease is not None or not step.request["key"])
