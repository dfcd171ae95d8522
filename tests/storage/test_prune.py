import pytest

from holdfast.storage.descriptor import OCI_MANIFEST, describe
from holdfast.storage.images import Image
from holdfast.storage.labels import PIN_LABEL
from holdfast.storage.prune import Wish, candidates, is_tagged

HOUR_NS = 3600 * 10**9
NOW_NS = 100 * HOUR_NS


def image(name: str, target: str, hours_old: float = 0, **labels: str) -> Image:
    at_ns = NOW_NS - int(hours_old * HOUR_NS)
    return Image(
        name=name,
        target=describe(target.encode(), OCI_MANIFEST),
        labels={PIN_LABEL: labels.pop("pinned"), **labels} if "pinned" in labels else labels,
        created_at=at_ns,
        updated_at=at_ns,
    )


DIGEST = "@sha256:" + "a" * 64
EVERY = [
    image("h.io/used:1", "used", 5),
    image("h.io/used:same-target", "used", 5),
    image(f"h.io/used{DIGEST}", "used", 5),
    image("h.io/pinned:1", "pinned", 5, pinned="pinned"),
    image(f"h.io/pinned{DIGEST}", "pinned", 5),
    image("h.io/free:1", "free", 5, tier="a"),
    image(f"h.io/free{DIGEST}", "free", 5),
    image(f"h.io/dangling{DIGEST}", "dangling", 5),
    image("sha256:" + "b" * 64, "dangling", 1),
    image("h.io/unpinned:1", "unpinned", 5, pinned="no"),
]


@pytest.mark.parametrize(
    ("wish", "going"),
    [
        (Wish(), [7, 8]),
        (Wish(all=True), [5, 6, 7, 8, 9]),
        (Wish(older_than_s=2 * 3600), [7]),
        (Wish(all=True, filters=["labels.tier==a"]), [5]),
        (Wish(all=True, filters=["name~=dangling", "labels.tier==a"]), [5, 7]),
        (Wish(all=True, filters=["name==h.io/pinned:1"]), []),
    ],
)
def test_what_is_used_or_pinned_stays_under_all_its_names(wish: Wish, going: list[int]) -> None:
    found = candidates(EVERY, frozenset({"h.io/used:1"}), wish, NOW_NS)
    assert found == [EVERY[number] for number in going]


@pytest.mark.parametrize(
    ("name", "tagged"),
    [
        ("h.io/a:1", True),
        (f"h.io/a:1{DIGEST}", True),
        ("localhost:5000/a", False),
        ("localhost:5000/a:1", True),
        (f"h.io/a{DIGEST}", False),
        ("sha256:" + "b" * 64, False),
    ],
)
def test_a_tag_stands_after_the_last_slash(name: str, tagged: bool) -> None:
    assert is_tagged(name) is tagged
