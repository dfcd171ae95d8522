"""What all draws have in common: names, labels, filters, masks, most usual and some not."""

import random
from collections.abc import Sequence
from typing import Any

Dice = random.Random

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


DIGESTS = ("@sha0", "@sha1", "@sha2", "@sha3")


def lease(dice: Dice) -> str | None:
    """The lease of a call: mostly none."""
    return dice.choice((None, None, None, None, None, "l1", "l1", "l2"))
