"""The tree that is shown is the tree that lives."""

import json
from typing import Any

import trio

from holdfast.actors.actor import Actor
from holdfast.supervision.dynamic import dynamic
from holdfast.supervision.spec import ChildSpec, Intensity, Strategy, Tree
from holdfast.supervision.supervisor import open_tree
from holdfast.supervision.tree import look, look_at_all
from holdfast.supervision.verbs import start_child, terminate_child


async def test_a_tree_is_told_with_every_childs_state(system, diary, talk):
    top = await open_tree(
        Tree(
            "root",
            Strategy.REST_FOR_ONE,
            Intensity(restarts=7, within_s=5.0),
            [*diary.specs("ab"), dynamic("tasks")],
        )
    )
    await start_child(await talk.child(top, "tasks"), diary.spec("c", name="web"))
    await talk.harm(await talk.child(top, "tasks"), "c")
    await terminate_child(top, "b")
    root = look(top)
    assert (root.path, root.kind, root.arrangement) == ("root", "supervisor", "rest_for_one")
    assert (root.restarts_recent, root.restarts_allowed) == (0, 7)
    assert [(n.path, n.kind, n.state, n.restarts) for n in root.walk()][1:] == [
        ("root/a", "worker", "running", 0),
        ("root/b", "worker", "stopped", 0),
        ("root/tasks", "supervisor", "running", 0),
        ("root/tasks/c", "worker", "running", 1),
    ]
    tasks = root.children[2]
    assert (tasks.arrangement, tasks.restarts_recent, tasks.actor) == (
        "dynamic",
        1,
        "DynamicSupervisor",
    )
    assert tasks.children[0].name == "web"
    assert json.loads(json.dumps(root.plain()))["children"][0]["id"] == "a"


async def test_one_that_hangs_is_shown_hanging(system, diary, talk):
    async def hang(_: Any) -> None:
        await trio.sleep(100)

    top = await open_tree(Tree("root", children=diary.specs("a", stop_within_s=1000.0)))
    worker = await talk.child(top, "a")
    worker.tell(hang)
    worker.tell("count")
    await trio.sleep(30)
    [node] = look(top).children
    assert "hang" in (node.current or "")
    assert node.current_age_s == 30.0
    assert node.mailbox_depth == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(terminate_child, top, "a")
        await trio.sleep(1)
        [node] = look(top).children
        assert (node.state, node.current_age_s) == ("stopping", 31.0)
        assert "TerminateChild" in (look(top).current or "")


async def test_a_start_under_way_is_shown(system, diary, talk):
    diary.start_takes_s["a"] = lambda _: 10.0
    top = await open_tree(Tree("root"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start_child, top, diary.spec("a"))
        await trio.sleep(1)
        assert [(n.id, n.state) for n in look(top).children] == [("Worker", "starting")]
    assert [(n.id, n.state) for n in look(top).children] == [("a", "running")]


async def test_all_trees_are_shown_with_children_in_nobodys_care(system, diary):
    class Parent(Actor):
        hosts_children = True

        async def on_start(self) -> Any:
            await diary.spec("x").start.spawn("x", diary, parent=self)

    await open_tree(Tree("root", children=[ChildSpec("p", Parent)]))
    await diary.spec("y").start.spawn("y", diary, name="lonely")
    paths = [node.path for top in look_at_all() for node in top.walk()]
    assert paths == ["root", "root/p", "root/p/Worker", "lonely"]
    assert look_at_all(system)[1].state == "running"


async def test_what_ended_is_shown_stopped(system, diary):
    worker = await diary.spec("y").start.spawn("y", diary)
    worker.shutdown()
    await worker.wait_exit()
    assert look(worker).state == "stopped"


async def test_an_actor_in_nobodys_care_is_shown_by_its_label(system):
    class Place(Actor):
        def __init__(self, label: str) -> None:
            super().__init__()
            self.label = label

    class Home(Actor):
        hosts_children = True

        async def on_start(self) -> None:
            await Place.spawn("default/web", parent=self)
            await Place.spawn("default/db", parent=self)

    top = look(await Home.spawn())
    assert [node.path for node in top.walk()] == ["Home", "Home/default/web", "Home/default/db"]
