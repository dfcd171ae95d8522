"""Sequences of steps, drawn by dice.

Names come from small pools, so that steps meet the same objects; a part of all input is unusual.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from . import draw_tasks
from .step import SIZES, Blob, Step

Dice = random.Random
STEPS = range(6, 22)
TASKS_SHARE = 0.04  # a sequence with containers takes as long as ten without

ODD_NAMES = (
    "", "-bad", "a/b", "ü", "a" * 76, "a" * 77, "a..b", "a_b.c-d", " ", "a b", 'q"uo\\te', "\n",
    "a\x00b", "x\u2028y",
)  # fmt: skip
LABEL_KEYS = ("k1", "k2", "com.example/tier", "containerd.io/x.y", "k.1")
ODD_LABELS = (
    {"": "empty key"}, {"k1": ""}, {"@kx4000@": "@vx97@"}, {"@kx4000@": "@vx96@"},
    {"k1": "@vx4095@"},
    {"k\n": "v\t"}, {"@üx2000@": "@vx97@"},
)  # fmt: skip
FILTERS = (
    "", "labels.k1", "labels.k1==v1", "labels.k1!=v1", "labels.k1~=v.", 'labels."com.example/tier"',
    'labels."com.example/tier"==v1', "labels.k1==v1,labels.k2==v2", "labels.containerd.io/x.y",
    'labels."containerd.io/x.y"==v1', "labels.k.1==v1", "labels", "nothing", "nothing==1",
    "nothing!=1",
)  # fmt: skip
ODD_FILTERS = (
    "labels.k1=", "==", "labels.k1==", "a b", "labels.", ".", ",", "id==c1,", "labels.k1~=[",
    'labels."k1', "labels.k1=~v", "labels.k1===v", "id==\"c1\"", "id~=/c/", "id==/c/", "id~=|c|",
    "id<c1", "\u00fc", "id==\u00fc", "labels.k1~=(?i)V1", "id~=^c[[:digit:]]$", "id == c1",
    "id==c1 ,labels.k1", "id~=\\d", 'id=="\\x63\\u0031"', 'id=="\\q"', "id==c1 x",
)  # fmt: skip


def odd(dice: Dice, share: float = 0.1) -> bool:
    """Whether this input is to be unusual."""
    return dice.random() < share


def name(dice: Dice, usual: Sequence[str], share: float = 0.06) -> str:
    """One of the usual names, or an unusual one."""
    return dice.choice(ODD_NAMES if odd(dice, share) else usual)


def labels(dice: Dice) -> dict[str, str]:
    """Some labels."""
    if odd(dice, 0.06):
        return dict(dice.choice(ODD_LABELS))
    keys = dice.sample(LABEL_KEYS, dice.choice((0, 1, 1, 2)))
    return {key: dice.choice(("v1", "v2", "")) for key in keys}


def filters(dice: Dice, *own: str) -> list[str]:
    """Some filters; `own` are those of the service."""
    if odd(dice, 0.3):
        return []
    pool = ODD_FILTERS if odd(dice, 0.25) else (*own, *FILTERS)
    return [dice.choice(pool) for _ in range(dice.choice((1, 1, 2)))]


def mask(dice: Dice, *own: str) -> dict[str, Any]:
    """A field mask, with paths that the service knows and others."""
    if odd(dice, 0.3):
        return {}
    pool = [*own, "labels", "labels.k1", "labels.com.example/tier", "labels.k9"]
    if odd(dice, 0.15):
        pool = ["", "nothing", "labels.", "created_at", "id", "name", "LABELS", "labels.k1.x"]
    return {"paths": [dice.choice(pool) for _ in range(dice.choice((1, 1, 2)))]}


def ns(dice: Dice) -> str | None:
    """The namespace of a call: nearly always the same."""
    if odd(dice, 0.04):
        return dice.choice((None, "", "-bad", "a/b", "x" * 77, "@ns-b"))
    return "@ns-a" if dice.random() < 0.93 else "@ns-b"


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
DIGESTS = ("@sha0", "@sha1", "@sha2", "@sha3")


def lease(dice: Dice) -> str | None:
    """The lease of a call: mostly none."""
    return dice.choice((None, None, None, None, None, "l1", "l1", "l2"))


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


# -- content

REFS = ("ref1", "ref2")
ODD_DIGESTS = (
    "",
    "x",
    "sha256:12",
    "md5:" + "0" * 32,
    "sha256:" + "0" * 64,
    "@sha512-0",
    ":",
    "a:b",
)


def digest(dice: Dice) -> str:
    """A digest in a call."""
    return dice.choice(ODD_DIGESTS if odd(dice) else DIGESTS)


def content(dice: Dice) -> Step:
    """A call to the content service."""
    verb = dice.choice(
        ("Write", "Write", "Write", "Write", "Info", "Update", "List", "Delete", "Read", "Read",
         "Status", "ListStatuses", "Abort")
    )  # fmt: skip
    match verb:
        case "Write":
            return write(dice)
        case "Update":
            info = {"digest": digest(dice), "labels": labels(dice)}
            request: Any = {"info": info, "update_mask": mask(dice, "size")}
        case "List":
            own = ("digest==@sha0", "digest", "digest~=sha256", "size==11", "size")
            request = {"filters": filters(dice, *own)}
        case "Read":
            offsets = (0, 0, 5, 11, 12, -1, 70_000, 69_999)
            sizes = (0, 0, 1, 5, 11, 100_000, -1)
            request = {
                "digest": digest(dice), "offset": dice.choice(offsets), "size": dice.choice(sizes)
            }  # fmt: skip
        case "Status" | "Abort":
            request = {"ref": name(dice, REFS)}
        case "ListStatuses":
            request = {"filters": filters(dice, "ref==ref1", "ref~=ref", "ref")}
        case _:
            request = {"digest": digest(dice)}
    return Step(f"Content.{verb}", request, ns=ns(dice), lease=lease(dice))


def write(dice: Dice) -> Step:
    """A Write stream: whole, in parts, resumed, wrong in many ways."""
    number = dice.choice((0, 0, 1, 2, 3))
    size = SIZES[number]
    ref = name(dice, REFS)
    first: dict[str, Any] = {"action": 0, "ref": ref}
    if odd(dice, 0.5):
        first |= {"total": size, "expected": f"@sha{number}"}
    if odd(dice):
        first["total"] = dice.choice((1, 5, -1, 1 << 40))
    if odd(dice):
        first["expected"] = dice.choice(("x", "@sha0", "sha256:12", "@sha512-0"))
    messages = [] if odd(dice, 0.15) else [first]
    cut = dice.choice((0, 3, 5, size)) if size > 1 else size
    shape = dice.choice(("whole", "whole", "parts", "begin", "end", "odd"))
    ended = {"action": 2, "ref": ref, "total": size, "expected": f"@sha{number}", "offset": size}
    if odd(dice, 0.3):
        ended["labels"] = labels(dice)
    if odd(dice):
        ended["total"] = dice.choice((0, 1, size + 1))
    if odd(dice):
        ended["expected"] = dice.choice(("", "@sha4", "x", "@sha512-0"))
    head = {"action": 1, "ref": ref, "offset": 0, "data": Blob(number, 0, cut)}
    tail = {"action": 1, "ref": ref, "offset": cut, "data": Blob(number, cut)}
    match shape:
        case "whole":
            if odd(dice, 0.3):
                messages += [{**ended, "data": Blob(number), "offset": 0}]
            else:
                messages += [{"action": 1, "ref": ref, "data": Blob(number)}, ended]
        case "parts":
            messages += [head, tail, ended]
        case "begin":
            messages += [head]
        case "end":
            messages += [tail, ended]
        case _:
            odds = (
                {"action": 1, "ref": ref, "offset": 99, "data": b"x"},
                {"action": 1, "ref": ref, "offset": -1, "data": b"x"},
                {"action": 1, "ref": ref},
                {"action": 0, "ref": ref},
                {"action": 0, "ref": "other"},
                {"action": 7, "ref": ref},
                {"action": 2, "ref": ref},
                {"action": 2, "ref": ref, "offset": 99},
                {"action": 1, "data": b"x"},
                ended,
            )
            messages += [dict(dice.choice(odds)) for _ in range(dice.choice((1, 2, 3)))]
    return Step("Content.Write", messages, ns=ns(dice), lease=lease(dice))


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
