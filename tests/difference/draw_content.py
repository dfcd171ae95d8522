"""Calls to the content service: reads, and Write streams that are right or wrong in many ways."""

from typing import Any

from .inputs import DIGESTS, Dice, filters, labels, lease, mask, name, ns, odd
from .step import SIZES, Blob, Step

REFS = ("ref1", "ref2")
EMPTY = 4
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
    number = EMPTY if odd(dice, 0.05) else dice.choice((0, 0, 1, 2, 3))
    size = SIZES[number]
    ref = name(dice, REFS) if number != EMPTY else "ref-empty"
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
