"""Sandbox records: kept, changed, listed, forgotten."""

from dataclasses import replace

import pytest

from holdfast.actors.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from holdfast.storage.containers import Opaque, Runtime
from holdfast.storage.sandboxes import Sandbox, SandboxStore
from holdfast.storage.store import Store

NS = "default"
ANY = Opaque(type_url="t", value=b"1")
POD = Sandbox(
    id="pod",
    runtime=Runtime(name="r", options=ANY),
    spec=ANY,
    labels={"a": "b"},
    extensions={"x": ANY},
    sandboxer="shim",
)


@pytest.fixture
def sandboxes(store: Store) -> SandboxStore:
    return SandboxStore(store)


async def test_a_record_is_kept_as_it_was_given(sandboxes: SandboxStore) -> None:
    made = await sandboxes.create(NS, POD)
    assert made.created_at == made.updated_at > 0
    assert replace(made, created_at=0, updated_at=0) == POD
    assert sandboxes.get(NS, "pod") == made
    with pytest.raises(AlreadyExists):
        await sandboxes.create(NS, POD)
    with pytest.raises(NotFound):
        sandboxes.get("other", "pod")
    await sandboxes.delete(NS, "pod")
    with pytest.raises(NotFound):
        await sandboxes.delete(NS, "pod")


async def test_a_bare_record_is_enough_and_a_bad_one_is_refused(sandboxes: SandboxStore) -> None:
    made = await sandboxes.create(NS, Sandbox(id="bare"))
    assert (made.spec, made.runtime, made.extensions) == (None, Runtime(name=""), {})
    with pytest.raises(InvalidArgument, match="invalid sandbox ID"):
        await sandboxes.create(NS, Sandbox(id="a/b"))
    with pytest.raises(InvalidArgument):
        await sandboxes.create(NS, Sandbox(id="big", labels={"a": "b" * 5000}))
    with pytest.raises(FailedPrecondition):
        await sandboxes.create("", POD)


async def test_an_update_changes_what_it_names(sandboxes: SandboxStore) -> None:
    made = await sandboxes.create(NS, POD)
    other = Opaque(type_url="u", value=b"2")
    new = Sandbox(
        id="pod",
        runtime=Runtime(name="r"),
        spec=other,
        labels={"a": "c", "d": "e"},
        extensions={"y": other},
    )
    updated = await sandboxes.update(NS, new, ["labels.d", "extensions.y"])
    assert updated.labels == {"a": "b", "d": "e"}
    assert updated.extensions == {"x": ANY, "y": other}
    assert (updated.spec, updated.created_at) == (ANY, made.created_at)
    assert (await sandboxes.update(NS, new, ["extensions.x"])).extensions == {"y": other}
    assert (await sandboxes.update(NS, new, ["spec"])).spec == other
    every = await sandboxes.update(NS, new)
    assert (every.labels, every.runtime, every.extensions) == (
        new.labels,
        new.runtime,
        new.extensions,
    )
    assert every.sandboxer == "shim"
    renamed = replace(new, runtime=Runtime(name="s"))
    with pytest.raises(InvalidArgument, match="immutable"):
        await sandboxes.update(NS, renamed)
    assert (await sandboxes.update(NS, renamed, ["runtime"])).runtime.name == "s"
    for path in ("id", "sandboxer", "spec.x"):
        with pytest.raises(InvalidArgument, match="cannot update"):
            await sandboxes.update(NS, new, [path])
    with pytest.raises(NotFound):
        await sandboxes.update(NS, Sandbox(id="none"))


async def test_lists_are_filtered(sandboxes: SandboxStore) -> None:
    await sandboxes.create(NS, POD)
    await sandboxes.create(NS, Sandbox(id="other", labels={"a": "c"}))
    for filters, ids in {
        (): ["other", "pod"],
        ("id==pod",): ["pod"],
        ("labels.a==c",): ["other"],
        ("runtime.name==r", "id==none"): ["pod"],
        ("sandboxer==shim",): ["pod"],
        ("nonsense==1",): [],
    }.items():
        assert [each.id for each in sandboxes.list(NS, filters)] == ids
