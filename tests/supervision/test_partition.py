"""Keys find their partition, always the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.actors.errors import InvalidArgument
from holdfast.actors.exits import KILL
from holdfast.supervision.dynamic import dynamic
from holdfast.supervision.partition import Partitions
from holdfast.supervision.supervisor import open_tree
from holdfast.supervision.verbs import start_child, which_children


@given(key=st.one_of(st.text(), st.binary()), count=st.integers(1, 64))
def test_a_key_has_one_partition(key, count):
    partitions = Partitions("p", count)
    assert 0 <= partitions.index(key) < count
    assert partitions.index(key) == Partitions("q", count).index(key)


def test_the_partition_of_a_key_does_not_change_with_the_day():
    assert [Partitions("p", 4).index(key) for key in ("a", b"a", "sha256:00")] == [3, 3, 2]


def test_no_partition_is_no_answer():
    with pytest.raises(InvalidArgument):
        Partitions("p", 0)


async def test_a_partition_serves_its_keys_across_restarts(system, diary, talk):
    partitions = Partitions("buckets", 3)
    top = await open_tree(partitions.tree(lambda number: dynamic(str(number))))
    for number in range(30):
        await start_child(partitions.at(str(number)), diary.spec(str(number)))
    infos = await which_children(top)
    assert [info.id for info in infos] == ["0", "1", "2"]
    served = [len(await which_children(info.ref)) for info in infos]
    assert sum(served) == 30
    assert all(served)
    fallen = partitions.at("a").resolve()
    fallen.exit(KILL)
    await talk.calm()
    assert partitions.at("a").resolve() is not fallen
    assert await which_children(partitions.at("a")) == []
